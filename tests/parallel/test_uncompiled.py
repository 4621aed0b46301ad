"""Nothing is compiled, and what compiles not imported, before a run asks for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parallel.uncompiled import uncompiled

ROOT = Path(__file__).parents[2]


def test_functions_stay_as_they_are_within_it_alone() -> None:
    original = torch.compile
    with uncompiled():

        @torch.compile
        def plain() -> str:
            return "plain"

        @torch.compile(dynamic=True)
        def with_options() -> str:
            return "with options"

    assert (plain(), with_options()) == ("plain", "with options")
    assert torch.compile is original


@pytest.mark.parametrize(
    "modules",
    ["pretrain.run", "pretrain.inference.model", "pretrain.run, deepspeed.runtime.zero.muon.muon_optimizer"],
)
def test_a_start_does_not_import_inductor(modules: str) -> None:
    """The last one as the first step of ZeRO-1 does."""
    told = "'torch._inductor.compile_fx' in sys.modules, torch.compile.__module__"
    script = f"import sys, torch, {modules}; print({told})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False torch"
