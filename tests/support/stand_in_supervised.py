"""It supervises stand-in ranks, as `surefoot train --supervise` does real ones.

stand_in_supervised.py LAUNCHER RUN_FOLDER PLAN [POLICY_KEY=SECONDS]...      LAUNCHER: deepspeed or stand_in
"""

import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

from launch.command import Command, LaunchOptions, build_command
from launch.machine import free_port, this_machine
from launch.process import note
from launch.supervise import Policy, Supervisor
from pretrain.errors import SurefootError

HERE = Path(__file__).parent
POLICY = Policy(hang_after=30.0, relaunches=2, first_delay=0.1, grace=2.0, wait_for_hosts=2.0)


def main(launcher: str, folder: Path, plan: str, *changes: str) -> int:
    options = LaunchOptions(config=folder, num_accelerators=2)
    numbers = count(1)

    def rank() -> list[str]:
        number, deeds = next(numbers), plan.split(",")
        deed = deeds[min(number, len(deeds)) - 1]
        # The last words are in the command line of every rank, and of no other process.
        return [str(HERE / "stand_in_worker.py"), str(folder), str(number), deed, "-m", "pretrain"]

    def deepspeed() -> Command:
        command = build_command(options, this_machine(), 1)
        return replace(command, argv=(*command.argv[: command.argv.index("--module")], *rank()))

    def stand_in() -> Command:
        port = free_port()
        argv = [sys.executable, str(HERE / "stand_in_launcher.py"), str(port), "2", sys.executable, *rank()]
        return Command(tuple(argv), {}, port, 2)

    build = {"deepspeed": deepspeed, "stand_in": stand_in}[launcher]
    changed = {key: float(value) for key, _, value in (change.partition("=") for change in changes)}
    try:
        return Supervisor(folder, 100, options, build, replace(POLICY, **changed)).run()
    except SurefootError as error:
        note(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
