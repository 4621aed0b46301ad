"""The largest eigenvalue that a run measures is that of the exact Hessian, in every layout; it changes nothing else."""

from functools import cache
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.tensors import Held
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed, slow

from data_pipeline.text.batch import TokenBatch
from parallel.eigenvalues import Search, largest_eigenvalues, random_normal
from pretrain.backend.setup import local_layers
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.inference.hessian import LossHessian

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sigma": {"reparametrization": "sigma", "attention": {"kind": "mlra"}},
}


def config_of(layout: Layout, name: str) -> RunConfig:
    return make_config(layout, num_layers=2, hidden_size=16, **MODELS[name])


def weights_of(engine: TrainEngine, config: RunConfig) -> Held:
    """The tensors of a whole model on one rank."""
    outline = config.model.outline(config.data)
    named = {
        f"{outline.names[index]}.{name}": tensor
        for index, layer in local_layers(engine.module)
        for name, tensor in layer.state_dict().items()
    }
    return Held({name: named[name].detach().clone() for name in outline.tensors})


def exactly(name: str) -> float:
    """By exact products in float64, at initial weights."""
    config = config_of(Layout(), name)
    mesh = make_mesh(config.parallel)
    weights = weights_of(make_engine(config, mesh), config)
    hessian = LossHessian(config.model, config.data, "fp64", weights, mesh, make_batches(config, mesh, 1))
    start = random_normal(hessian.zeros(), torch.Generator().manual_seed(0))
    (found,) = largest_eigenvalues(hessian, start, Search(1, 20, 1e-6, 200))
    return found.value


@cache
def exact(name: str) -> float:
    return run_distributed(exactly, 1, name)[0]


Looks = list[tuple[float, float, int]]
"""Of each the value, the residual relative to it, and the products."""


def measured(layout: Layout, name: str) -> tuple[Looks, bool]:
    """It looks three times, and tells whether all is as it was."""
    config = config_of(layout, name)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    before, looks = engine.checksum(), []
    for _ in range(3):
        products = engine.curvature.products
        found = engine.curvature.look(make_batches(config, mesh, 1), lambda: None)
        assert found is not None
        looks.append((found.value, found.residual / found.value, engine.curvature.products - products))
    return looks, engine.checksum() == before


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (Layout(tensor=2), "sigma"),
        (Layout(pipeline=2, accumulation=2), "plain"),
        (Layout(data=2, zero=1), "plain"),
        slow(Layout(), "sigma"),
        slow(Layout(tensor=2), "plain"),
        slow(Layout(data=2), "plain"),
        slow(Layout(data=2, zero=2, accumulation=2), "sigma"),
        slow(Layout(data=2, zero=3), "plain"),
        slow(Layout(tensor=2, pipeline=2), "sigma"),
        slow(Layout(pipeline=2, data=2, zero=1, accumulation=2), "plain"),
    ],
    ids=str,
)
def test_it_is_the_exact_one_in_every_layout(layout: Layout, name: str) -> None:
    ranks = run_distributed(measured, layout.world_size, layout, name)
    for looks, unchanged in ranks:
        assert unchanged
        assert looks == ranks[0][0], "the same bytes on every rank"
        first, second, third = looks
        for value, residual, _ in looks:
            assert abs(value - exact(name)) <= (residual + 1e-3) * exact(name)
        assert third[0] == pytest.approx(exact(name), rel=5e-3)
        assert second[2] < first[2], "a look begins where the last one has ended"
        assert max(second[1], third[1]) < 1.5e-2


def losses(layout: Layout, name: str, looking: bool) -> list[float]:
    """Of five steps, with a look at another batch before each, or without."""
    config = make_config(layout, num_layers=2, hidden_size=16, dropout=0.1, **MODELS[name])
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    found = []
    for step in range(1, 6):
        if looking:
            engine.curvature.look(make_batches(config, mesh, 99), lambda: None)
        batches = make_batches(config, mesh, step)
        report, _ = engine.step(batches, proceed, step=step, learning_rate=1e-2)
        found.append(report.loss)
    return found


@pytest.mark.parametrize(
    "layout",
    [
        Layout(tensor=2, accumulation=2),
        slow(Layout(pipeline=2, data=2, zero=1)),
        slow(Layout(data=2, zero=3)),
    ],
    ids=str,
)
def test_training_does_not_change_by_a_bit(layout: Layout) -> None:
    name = "plain" if layout.zero == 3 else "sigma"
    (plain, *_), (looked, *_) = (
        run_distributed(losses, layout.world_size, layout, name, looking) for looking in (False, True)
    )
    assert looked == plain


def at_overflow() -> tuple[bool, float | None]:
    """It looks at weights that overflow, and at sound ones after that."""
    config = config_of(Layout(), "plain")
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    batches: list[TokenBatch] = make_batches(config, mesh, 1)
    held = next(engine.masters()).weight.data
    before = held.clone()
    held.fill_(float("inf"))
    nothing = engine.curvature.look(batches, lambda: None)
    held.copy_(before)
    found = engine.curvature.look(batches, lambda: None)
    return nothing is None, found and found.value


def test_where_gradients_are_not_finite_there_is_none() -> None:
    ((nothing, found),) = run_distributed(at_overflow, 1)
    assert nothing
    assert found == pytest.approx(exact("plain"), rel=1e-2)
