"""Losses, gradient norms, all other measures and checkpoint digests equal the recorded ones, bit for bit."""

from pathlib import Path

import pytest
from support.golden import CASES, RECORDED, machine, run_case
from support.training import slow

USUAL = ("gpt2-dense-tp2-pp2", "llama-sigma-zero2", "llama-bf16-tp2-pp2")


@pytest.mark.parametrize("case", [case if case in USUAL else slow(case) for case in CASES])
def test_numbers_are_those_recorded(case: str, corpus: Path, tmp_path: Path) -> None:
    recorded = (RECORDED / f"{case}.txt").read_text()
    if machine() not in recorded:
        pytest.skip(f"recorded elsewhere: {recorded.splitlines()[0].lstrip('# ')}; this is {machine()}")
    assert run_case(case, tmp_path, corpus) == recorded
