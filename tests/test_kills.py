"""Killed at random moments of every phase, a run ends as one that nobody has touched, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KILLS = 25


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments_of_every_phase(ranks: int, tmp_path: Path) -> None:
    words = ["--kills", str(KILLS), "--ranks", str(ranks), "--json", str(tmp_path / "result.json")]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/kills.py"), *words, "--folder", str(tmp_path / "lives")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["problems"] == []
    phases = ("prepare", "first save", "seal", "certify", "rollback", "conversion")
    assert min(result["killed"][phase] for phase in phases) >= 3
