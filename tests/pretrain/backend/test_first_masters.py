"""The fp32 masters of a bf16 run begin as its rounded weights: docs/architecture.md says so, and users compare runs."""

from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.training import Layout, make_config, make_engine, make_mesh, slow
from torch import Tensor

from pretrain.config.run import RunConfig

METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sigma": {"reparametrization": "sigma"},
    "mlra": {"attention": {"kind": "mlra"}},
}


def first_masters(config: RunConfig) -> dict[int, Tensor]:
    """It returns number of the parameter -> what one rank, which has all of it, begins to move."""
    engine = make_engine(config, make_mesh(config.parallel))
    numbers = {id(parameter): number for number, parameter in enumerate(engine.module.parameters())}
    return {numbers[id(held.parameter)]: held.weight.detach().flatten().clone() for held in engine.masters()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zero", [slow(0), 1, slow(2), slow(3)])
def test_masters_begin_as_rounded_weights(method: str, zero: int) -> None:
    if zero == 3 and method == "sigma":
        return  # refused
    whole = make_config(Layout(dtype="fp32"), **METHODS[method])
    mixed = make_config(Layout(dtype="bf16", zero=zero), **METHODS[method])
    (weights,), (masters,) = (run_distributed(first_masters, 1, config) for config in (whole, mixed))
    assert masters.keys() == weights.keys()
    for number, weight in weights.items():
        assert masters[number].dtype == torch.float32
        assert torch.equal(masters[number], weight.bfloat16().float())
