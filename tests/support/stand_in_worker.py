"""It stands in for a rank of a supervised run: heartbeats, lock, checkpoints and ledger are as real ranks have them.

    stand_in_worker.py RUN_FOLDER LAUNCH DEED

LAUNCH is the number of the launch, which is also its step. DEED:
    done    rank 0 seals a checkpoint and writes `done`; exit 0        zero    exit 0 and no `done`
    work    until killed or asked to stop, then exit 75                exit=N  exit N
    seal    rank 0 seals a checkpoint and exits with 1                 mute    live, but never beat again
"""

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from pretrain.checkpoint.manifest import MANIFEST
from pretrain.errors import ConfigurationError
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.record import Kind, Record
from pretrain.run_folder import LEDGER
from pretrain.runtime.heartbeat import Heartbeat, Phase
from pretrain.runtime.run_lock import RunLock
from pretrain.runtime.signals import StopSignals
from pretrain.runtime.stacks import stacks_on_request


def main(folder: Path, launch: int, deed: str) -> int:
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    with StopSignals() as signals, ExitStack() as stack:
        if rank == 0:
            stack.enter_context(RunLock(folder))
        stack.enter_context(stacks_on_request(folder, rank))
        heartbeat = stack.enter_context(Heartbeat(folder, rank, port))
        heartbeat.beat(launch, Phase.STEP)
        if rank == 0 and deed in ("done", "seal"):
            seal(folder, launch)
        if rank == 0 and deed == "done":
            LedgerFile(folder / LEDGER).append(Record(Kind.DONE, step=launch, attempt=launch, lineage=1))
        while deed == "mute":
            signal.pause()
        while not signals.received and (deed == "work" or (deed == "seal" and rank > 0)):
            heartbeat.beat(launch, Phase.STEP)
            time.sleep(0.05)
        codes = {"done": 0, "zero": 0, "work": 75, "seal": 1}
        return codes[deed] if deed in codes else int(deed.removeprefix("exit="))


def seal(folder: Path, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"step{step:08d}-a{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).touch()


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    except ConfigurationError as error:
        sys.exit(error.exit_code)
