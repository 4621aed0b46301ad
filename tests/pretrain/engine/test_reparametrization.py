"""sigmaReparam in training: the same in every layout, resumed exactly, vetoed without a trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.runs import contents, differences, newest_checkpoint, run_and_stop, run_config, run_to_end
from support.traffic import recorded
from support.training import (
    SEQUENCE,
    Layout,
    make_batches,
    make_config,
    make_engine,
    make_mesh,
    proceed,
    slow,
)

from data_pipeline.text.batch import TokenBatch
from parallel.spectral import find_spectral_layers
from pretrain.plan.rules import layout_problems
from pretrain.step import Action, Verdict

STEPS = 20
SIGMA: dict[str, Any] = {"reparametrization": "sigma", "positions": "learned"}
Losses = list[tuple[float, float]]

LAYOUTS = [
    Layout(accumulation=3, checkpointing=True),
    slow(Layout(tensor=2)),
    Layout(tensor=4, accumulation=3),
    slow(Layout(pipeline=2, accumulation=3)),
    slow(Layout(data=2)),
    Layout(data=2, zero=2),
    slow(Layout(tensor=2, data=2, zero=1, accumulation=3)),
    Layout(tensor=2, pipeline=2, accumulation=3, checkpointing=True),
    Layout(pipeline=2, data=2, zero=1, accumulation=3),
]


def train(layout: Layout, model: dict[str, Any]) -> tuple[Losses, dict[str, list[float]]]:
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
    return [*course, engine.evaluate(make_batches(config, mesh, 0))[:2]], norms


def largest_difference(course: Losses, reference: Losses) -> float:
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


def courses(layout: Layout, models: list[dict[str, Any]]) -> list[tuple[Losses, dict[str, list[float]]]]:
    return [train(layout, model) for model in models]


def test_following_sigma_does_not_change_training() -> None:
    plain = {"positions": "learned"}
    followed = {**plain, "reparametrization": "sigma_stats_only"}
    ((without, _), (course, norms)) = run_distributed(courses, 1, Layout(accumulation=3), [plain, followed])[
        0
    ]
    assert course == without
    assert norms


def test_bf16_stays_close_to_fp32() -> None:
    ((reference, _),) = run_distributed(train, 1, Layout(), SIGMA)
    for layout in (
        Layout(dtype="bf16", data=2, zero=1, accumulation=3),
        Layout(dtype="bf16", tensor=2, zero=2),
    ):
        course, _ = run_distributed(train, layout.world_size, layout, SIGMA)[0]
        assert largest_difference([(loss,) for loss, _ in course], [(loss,) for loss, _ in reference]) < 5e-3


LICENSE = Path(__file__).parents[3] / "LICENSE"
"""A text that nobody edits: where singular values cross, how close sigma is depends on it."""


def against_svd(steps: int, model: dict[str, Any]) -> list[tuple[float, str]]:
    """Relative error of sigma by matrix, the largest first, after training on text."""
    config = make_config(Layout(), **SIGMA, **model)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    text = torch.tensor(list(LICENSE.read_bytes()))
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        starts = torch.randint(0, len(text) - SEQUENCE - 1, (12,), generator=generator).tolist()
        block = torch.stack([text[start : start + SEQUENCE + 1] for start in starts])
        batch = TokenBatch(block[:, :-1], block[:, 1:], torch.ones(12, SEQUENCE))
        engine.step([batch], proceed, step=step, learning_rate=1e-3 * min(step / 20, 1 - 0.9 * step / steps))
    found = []
    for layer in find_spectral_layers(engine.module):
        for number, matrix, _ in layer.norms.matrices(layer.weight.detach()):
            exact = torch.linalg.matrix_norm(matrix.double(), 2).item()
            found.append((abs(layer.norms.sigma_K[number].item() / exact - 1), f"{layer.name}[{number}]"))
    return sorted(found, reverse=True)


def test_sigma_follows_the_svd_during_training() -> None:
    (found,) = run_distributed(against_svd, 1, 200, {})
    assert len(found) == 4 * 6
    assert found[0][0] < 1e-3, found[0]


def collectives(layout: Layout, model: dict[str, Any]) -> int:
    """Collective calls of this rank in the third optimizer step."""
    config = make_config(layout, **model)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    for step in (1, 2):
        engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)
    with recorded() as calls:
        engine.step(make_batches(config, mesh, 3), proceed, step=3, learning_rate=1e-3)
    return len(calls)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("accumulation", [1, slow(3)])
@pytest.mark.parametrize("data", [1, 2])
def test_two_more_collectives_a_step_at_any_depth(depth: int, accumulation: int, data: int) -> None:
    layout = Layout(tensor=2, data=data, zero=1, accumulation=accumulation)
    plain = run_distributed(collectives, layout.world_size, layout, {"num_layers": depth})
    sigma = run_distributed(collectives, layout.world_size, layout, {**SIGMA, "num_layers": depth})
    assert plain[0] > 2 * depth * accumulation, "the count misses the collectives of the layers"
    assert [with_ - without for with_, without in zip(sigma, plain, strict=True)] == [2] * layout.world_size


def snapshot(engine: Any) -> list[torch.Tensor]:
    norms = [layer.norms for layer in find_spectral_layers(engine.module)]
    buffers = [t for n in norms for t in (n.sigma_K, n.gamma_K, n.sharded_L, n.basis_KRV, n.effective)]
    return [t.detach().clone() for t in (*buffers, *engine.module.parameters())]


def untouched(layout: Layout) -> tuple[list[str], list[str]]:
    """What an evaluation changes, and what a vetoed step does."""
    config = make_config(layout, **SIGMA)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    engine.step(make_batches(config, mesh, 1), proceed, step=1, learning_rate=1e-2)
    before = snapshot(engine)
    engine.evaluate(make_batches(config, mesh, 0))
    evaluated = differences(snapshot(engine), before)
    engine.step(
        make_batches(config, mesh, 2), lambda report: Verdict(Action.VETO), step=2, learning_rate=1e-2
    )
    return evaluated, differences(snapshot(engine), before)


@pytest.mark.parametrize("layout", [Layout(tensor=2, zero=1), Layout(data=2, zero=2)], ids=str)
def test_nothing_moves_in_evaluation_or_under_a_veto(layout: Layout) -> None:
    assert run_distributed(untouched, 2, layout) == [([], [])] * 2


@pytest.mark.parametrize(
    "layout",
    [Layout(tensor=2, zero=1), Layout(pipeline=2, accumulation=3), Layout(dtype="bf16", data=2, zero=2)],
    ids=str,
)
def test_resumed_equals_uninterrupted(layout: Layout, corpus: Path, tmp_path: Path) -> None:
    twin, config = (
        run_config(layout, tmp_path / name, corpus, model={**SIGMA, "num_layers": 2, "hidden_size": 16})
        for name in ("twin", "run")
    )
    run_distributed(run_to_end, layout.world_size, twin)
    assert set(run_distributed(run_and_stop, layout.world_size, config, 3)) == {"preempted"}
    assert set(run_distributed(run_to_end, layout.world_size, config)) == {"finished"}
    ours, theirs = (contents(newest_checkpoint(tmp_path / name)) for name in ("run", "twin"))
    assert differences(ours, theirs) == []


def test_zero_3_is_refused() -> None:
    problems = layout_problems(make_config(Layout(zero=3), **SIGMA), 1)
    assert ["parallel.zero_stage" in str(problem) for problem in problems] == [True]
