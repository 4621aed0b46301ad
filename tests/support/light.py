"""Commands start without the libraries that take seconds to import."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deepspeed", "megatron", "numpy", "webdataset", "sentencepiece", "tensorboard")


def run_and_list_heavy(*words: str) -> subprocess.CompletedProcess[str]:
    """It runs `surefoot WORDS...`; the last line of standard error lists the heavy libraries that were imported."""
    script = (
        f"import sys\nfrom launch.cli import main\ntry: sys.exit(main({list(words)!r}))\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
