"""It runs stand-in ranks through the real DeepSpeed launcher, as `surefoot train` runs the real ones.

stand_in_train.py FOLDER MODE
"""

import sys
from dataclasses import replace
from pathlib import Path

from launch.command import LaunchOptions, build_command
from launch.machine import this_machine
from launch.outcome import outcome_of
from launch.process import run

if __name__ == "__main__":
    options = LaunchOptions(config=Path(sys.argv[1]), num_accelerators=2)
    command = build_command(options, this_machine(), 1)
    script = str(Path(__file__).with_name("stand_in_rank.py"))
    argv = command.argv[: command.argv.index("--module")]
    command = replace(command, argv=(*argv, script, *sys.argv[1:]))
    (Path(sys.argv[1]) / "port").write_text(str(command.master_port))
    outcome = outcome_of(run(command, options, Path(sys.argv[1])), None, 1)
    print(outcome.reason, flush=True)
    sys.exit(outcome.exit_code)
