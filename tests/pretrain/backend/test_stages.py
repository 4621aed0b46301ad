"""What a pipeline stage hands on lies in memory as it is sent, whatever its layers return."""

from typing import Any

import torch
from support.distributed import run_distributed
from support.training import Layout, make_config, make_mesh
from torch import Tensor, nn

from parallel.pipeline import Activation, LayerSpec
from pretrain.backend.setup import build_module


class Turned(nn.Module):
    """It returns a matrix that lies in memory as its transpose does, alone or with another tensor."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, x: Tensor) -> Activation:
        return x.t() if self.alone else (x.t(), x)


def handed_on(alone: bool) -> list[tuple[bool, list[list[float]]]]:
    """Whether tensors that leave this rank's stage are contiguous, and what they are."""
    mesh = make_mesh(make_config(Layout(pipeline=2)).parallel)
    specs = [LayerSpec(Turned, {"alone": alone})] * 2

    def objective(outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        return outputs.sum()

    found = build_module(specs, [0, 1, 2], mesh, objective)(torch.arange(6.0).view(2, 3))
    return [(x.is_contiguous(), x.tolist()) for x in ([found] if isinstance(found, Tensor) else found)]


def test_it_is_contiguous() -> None:
    turned, as_it_was = [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert run_distributed(handed_on, 2, True)[0] == [(True, turned)]
    assert run_distributed(handed_on, 2, False)[0] == [(True, turned), (True, as_it_was)]
