"""What compiles blocks says so where it cannot, and lets them run as they are."""

import pytest
import torch
from torch import Tensor, nn

from pretrain.models.compiler import Compiler


class Halved(nn.Module):
    def run(self, x: Tensor) -> Tensor:
        return x / 2

    def run_and_look(self, x: Tensor) -> Tensor:
        return x / 2 if x.sum().item() > 0 else x  # no graph can know which


def test_what_can_be_compiled_is() -> None:
    compiler, device = Compiler("eager"), torch.device("cpu")
    assert compiler.problem(device) == ""
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert [compiler.call(Halved.run, Halved(), torch.ones(3)).sum() for _ in range(3)] == [1.5] * 3


def test_a_compiler_that_does_not_work_is_found_at_the_start() -> None:
    assert "backend" in Compiler("none_such").problem(torch.device("cpu"))


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(recwarn: pytest.WarningsRecorder) -> None:
    compiler = Compiler("eager")
    for value in (1.0, -1.0, 3.0):
        result = compiler.call(Halved.run_and_look, Halved(), torch.tensor([value]))
        assert result == (value / 2 if value > 0 else value)
    (warning,) = [str(w.message) for w in recwarn if "model.compile" in str(w.message)]
    assert warning.startswith("model.compile = true: Halved.run_and_look runs uncompiled: ")
