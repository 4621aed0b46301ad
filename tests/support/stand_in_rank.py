"""It stands in for a rank in tests of the launcher.

    stand_in_rank.py FOLDER MODE      MODE: seal (exit 75 on SIGTERM), wait (until killed), exit=N (at once)

It leaves FOLDER/rank-R.pid when it is ready and a line in FOLDER/rank-R.signals for each signal.
"""

import os
import signal
import sys
import time
from pathlib import Path

from pretrain.errors import Preempted


def main(folder: Path, mode: str) -> int:
    rank = os.environ["RANK"]
    noted = folder / f"rank-{rank}.signals"
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        with noted.open("a") as file:
            file.write(f"{signal.Signals(number).name}\n")

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, note)
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    if mode.startswith("exit="):
        return int(mode.removeprefix("exit="))
    while not (seen and mode == "seal"):
        time.sleep(0.05)
    time.sleep(1.0)  # sealing takes its time
    (folder / f"rank-{rank}.sealed").touch()
    return Preempted.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
