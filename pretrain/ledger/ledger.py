"""All ranks see the ledger alike: one writes, all fold."""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.shown import shown
from parallel.mesh import ParallelMesh
from pretrain.errors import CheckpointError
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.history import RunHistory
from pretrain.ledger.record import Record
from pretrain.run_folder import LEDGER
from pretrain.runtime.agreement import from_first

Report = Callable[[Record], None]


@dataclass
class RunLedger:
    """It has the records of a run; `history`, the fold over them, is equal on all ranks."""

    mesh: ParallelMesh
    history: RunHistory
    file: LedgerFile | None
    """On rank 0."""
    report: Report
    """Is told every record, on every rank."""
    unwritten: list[Record] = field(default_factory=list)
    """On rank 0: what the disk had no room for; it is written before anything else is."""

    @classmethod
    def open(cls, run_folder: Path, mesh: ParallelMesh, stack: ExitStack, report: Report) -> "RunLedger":
        """Open the ledger of a run folder, or begin it.

        Raises:
            CheckpointError: it was changed, or cannot be read or written; on all ranks.
        """
        files: list[LedgerFile] = []

        def open_ledger() -> RunHistory:
            files.append(LedgerFile(run_folder / LEDGER))
            stack.callback(files[0].close)
            return files[0].history

        history, problem = from_first(mesh, open_ledger)
        if history is None:
            raise CheckpointError(problem)
        return cls(mesh, history, files[0] if files else None, report)

    def run_id(self) -> str:
        """It returns the name of the run, a new random one where it has none; every rank must call this."""
        new = self.mesh.gather(secrets.token_hex(8))[0]
        return self.history.run_ids[0] if self.history.run_ids else new

    def append(self, record: Record) -> None:
        """Write down what was seen; every rank must call this with the same record. A disk that is full does not
        end the run: what was seen then is written with the next record that there is room for."""
        self.history = self.history.after(record)
        if self.file is not None:
            self.unwritten.append(record)
            try:
                self._write(self.file)
            except OSError as error:
                print(f"surefoot: {LEDGER} cannot be written: {shown(error)}", flush=True)
        self.report(record)

    def append_before(self, record: Record) -> None:
        """Write down an intent before its deed.

        Raises:
            CheckpointError: it is not on the disk; on all ranks.
        """
        _, problem = from_first(self.mesh, lambda: self._write(self.file, record) if self.file else None)
        if problem:
            raise CheckpointError(f"nothing is undone that the ledger does not know of: {problem}")
        self.history = self.history.after(record)
        self.report(record)

    def _write(self, file: LedgerFile, *records: Record) -> None:
        """Append what is unwritten, then these records. Raises OSError."""
        while self.unwritten:
            file.append(self.unwritten[0])
            del self.unwritten[0]
        for record in records:
            file.append(record)
        while file.losses:
            print(f"surefoot: {file.losses.pop(0)}", flush=True)
