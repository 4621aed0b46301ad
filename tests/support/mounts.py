"""Programs run where a small file system is mounted, which nobody else sees."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def with_mount(
    source: Sequence[str], place: Path, arguments: Sequence[str]
) -> "subprocess.CompletedProcess[str]":
    """It runs Python with these arguments once `mount SOURCE PLACE` is done in a namespace of its own; skips the test
    where that is not allowed."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    count = len(source) + 1
    script = f'mount "${{@:1:{count}}}" && shift {count} && exec "$0" "$@"'
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script, sys.executable, *source, str(place), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
