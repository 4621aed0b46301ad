"""The ledger as all ranks see it: one writes, all fold."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from parallel.mesh import ParallelMesh
from pretrain.agreement import from_first
from pretrain.errors import CheckpointError
from pretrain.watchdog.ledger import LEDGER, Ledger
from pretrain.watchdog.record import Record
from pretrain.watchdog.recovery import Recovery

Report = Callable[[Record], None]


@dataclass
class Chronicle:
    """Records of a run; `recovery`, the fold over them, is equal on all ranks."""

    mesh: ParallelMesh
    recovery: Recovery
    ledger: Ledger | None
    """On rank 0."""
    report: Report
    """Is told every record, on every rank."""
    untold: list[Record] = field(default_factory=list)
    """On rank 0: what the disk had no room for; it is written before anything else is."""

    @classmethod
    def open(cls, run_folder: Path, mesh: ParallelMesh, stack: ExitStack, report: Report) -> "Chronicle":
        """Take up the ledger of a run folder, or begin it.

        Raises:
            CheckpointError: it was changed, or cannot be read or written; on all ranks.
        """
        ledgers: list[Ledger] = []

        def open_ledger() -> Recovery:
            try:
                ledgers.append(Ledger(run_folder / LEDGER))
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{run_folder / LEDGER}: a record that this version cannot read ({error})"
                ) from error
            stack.callback(ledgers[0].close)
            return ledgers[0].recovery

        recovery, problem = from_first(mesh, open_ledger)
        if recovery is None:
            raise CheckpointError(problem)
        return cls(mesh, recovery, ledgers[0] if ledgers else None, report)

    def tell(self, record: Record) -> None:
        """Write down what was seen; every rank must call this with the same record. A disk that is full does not
        end the run: what was seen then is written with the next record that there is room for."""
        self.recovery = self.recovery.after(record)
        if self.ledger is not None:
            self.untold.append(record)
            try:
                self._write(self.ledger)
            except OSError as error:
                print(f"surefoot: {LEDGER} cannot be written: {error}", flush=True)
        self.report(record)

    def commit(self, record: Record) -> None:
        """Write down an intent before its deed.

        Raises:
            CheckpointError: it is not on the disk; on all ranks.
        """
        _, problem = from_first(self.mesh, lambda: self._write(self.ledger, record) if self.ledger else None)
        if problem:
            raise CheckpointError(f"nothing is undone that the ledger does not know of: {problem}")
        self.recovery = self.recovery.after(record)
        self.report(record)

    def _write(self, ledger: Ledger, *records: Record) -> None:
        """Append what is untold, then these. Raises OSError."""
        while self.untold:
            ledger.append(self.untold[0])
            del self.untold[0]
        for record in records:
            ledger.append(record)
