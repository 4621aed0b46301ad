"""sigmaReparam in training: equal to the formula taken literally, in every layout, resumed exactly, vetoed without trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_distributed
from runs import contents, differences, newest_checkpoint, run_and_stop, run_config, run_to_end
from training import Layout, make_batches, make_config, make_engine, make_mesh, proceed

from parallel.spectral import find_spectral_layers

STEPS = 20
SIGMA: dict[str, Any] = {"reparametrization": "sigma", "positions": "learned"}
Course = list[tuple[float, float]]

LAYOUTS = [
    Layout(accumulation=3, checkpointing=True),
    Layout(tensor=2),
    Layout(tensor=4, accumulation=3),
    Layout(pipeline=2, accumulation=3),
    *(Layout(data=2, zero=stage) for stage in range(3)),
    Layout(tensor=2, data=2, zero=1, accumulation=3),
    Layout(tensor=2, data=2, zero=2),
    Layout(tensor=2, pipeline=2, accumulation=3, checkpointing=True),
    Layout(pipeline=2, data=2, zero=1, accumulation=3),
]


def train(layout: Layout, model: dict[str, Any]) -> tuple[Course, dict[str, list[float]]]:
    """(loss, gradient norm) of each step and the validation loss; sigma, gamma and the SVD's sigma by matrix."""
    config = make_config(layout, **model)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    course = []
    for step in range(1, STEPS + 1):
        report, _ = engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)
        course.append((report.loss, report.gradient_norm))
    norms = {
        layer.name: layer.norms.sigma_K.tolist() + layer.norms.gamma_K.tolist()
        for layer in find_spectral_layers(engine.module)
    }
    return [*course, engine.evaluate(make_batches(config, mesh, 0))], norms


def largest_difference(course: Course, reference: Course) -> float:
    pairs = zip(course, reference, strict=True)
    return max(abs(a - b) / abs(b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_agree(layout: Layout) -> None:
    ((reference, norms),) = run_distributed(train, 1, Layout(), SIGMA)
    for course, own in run_distributed(train, layout.world_size, layout, SIGMA):
        assert largest_difference(course, reference) <= 1e-5
        if layout.pipeline == 1:
            for name, values in norms.items():
                assert own[name] == pytest.approx(values, rel=1e-5)
