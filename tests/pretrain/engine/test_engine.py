"""The engine's step: the judge's place, the veto, the mean over targets, missing batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.engine_state import state
from support.runs import differences
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed

from pretrain.engine.targets import BatchesMissing
from pretrain.step import Action, StepReport, Verdict

LAYOUTS = [
    Layout(accumulation=3),
    Layout(tensor=2, zero=1),
    Layout(pipeline=2, accumulation=3),
    *(Layout(data=2, zero=stage) for stage in range(4)),
    *(Layout(dtype="bf16", data=2, zero=stage) for stage in range(4)),
    Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3),
]


def veto(report: StepReport) -> Verdict:
    return Verdict(Action.VETO)


def vetoed_step(layout: Layout) -> tuple[list[str], list[str], list[float], list[float]]:
    """What a vetoed step changed; what a step after it differs in from one that never saw the vetoed batch."""
    config = make_config(layout)
    mesh = make_mesh(config.parallel)
    courses, states, changed = [], [], []
    for with_veto in (True, False):
        engine = make_engine(config, mesh)
        course = [_take(engine, config, mesh, 1)]
        if with_veto:
            before = state(engine)
            engine.step(make_batches(config, mesh, 99), veto, step=2, learning_rate=1e-2)
            changed = differences(state(engine), before)
        course.append(_take(engine, config, mesh, 2))
        courses.append(course)
        states.append(state(engine))
    return changed, differences(*states), *courses


def _take(engine: Any, config: Any, mesh: Any, step: int) -> float:
    report, _ = engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=1e-2)
    return report.loss


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_vetoed_step_leaves_no_trace(layout: Layout) -> None:
    for changed, after, with_veto, without in run_distributed(vetoed_step, layout.world_size, layout):
        assert changed == []
        assert after == []
        assert with_veto == without


def poisoned(layout: Layout, rank: int) -> tuple[list[str], bool]:
    """A NaN in one gradient of one rank: what changed, and what the judge was told."""
    config = make_config(layout)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    _take(engine, config, mesh, 1)
    before = state(engine)
    heard = []

    def judge(report: StepReport) -> Verdict:
        heard.append(report.finite)
        return Verdict(Action.PROCEED if report.finite else Action.VETO)

    if mesh.rank == rank:
        next(engine.module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    engine.step(make_batches(config, mesh, 2), judge, step=2, learning_rate=1e-2)
    return differences(state(engine), before), heard[0]


POISONED = [
    Layout(tensor=2),
    Layout(pipeline=2, accumulation=3),
    Layout(data=2, zero=1),
    Layout(data=2, zero=2),
]


@pytest.mark.parametrize("layout", POISONED, ids=str)
def test_a_non_finite_gradient_on_one_rank_is_seen_by_all(layout: Layout) -> None:
    assert run_distributed(poisoned, 2, layout, 1) == [([], False)] * 2


def clipped_norm(layout: Layout) -> float:
    """Norm of the update as in SGD: with a huge epsilon, Adam's first step is lr * gradient / epsilon."""
    config = make_config(layout)
    config = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(
                update={"epsilon": 1e6, "weight_decay": 0.0, "gradient_clipping": 0.01}
            )
        }
    )
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    before = [p.detach().clone() for p in engine.module.parameters()]
    engine.step(make_batches(config, mesh, 1), proceed, step=1, learning_rate=1e6)
    moved = zip(before, engine.module.parameters(), strict=True)
    return sum((after - start).double().square().sum().item() for start, after in moved) ** 0.5


@pytest.mark.parametrize("layout", [Layout(), Layout(zero=1), Layout(zero=2)], ids=str)
def test_the_update_is_clipped_to_the_global_norm(layout: Layout) -> None:
    (norm,) = run_distributed(clipped_norm, 1, layout)
    assert norm == pytest.approx(0.01, rel=1e-3)


def masked(layout: Layout) -> tuple[StepReport, StepReport]:
    """Reports of a step whose second half is masked, and of one with targets masked that are random instead."""
    config = make_config(layout)
    mesh = make_mesh(config.parallel)
    reports = []
    for noise in (0, 1):
        engine = make_engine(config, mesh)
        batches = []
        for batch in make_batches(config, mesh, 1):
            weights = batch.weights_BS.clone()
            weights[:, 16:] = 0
            targets = torch.where(weights > 0, batch.targets_BS, (batch.targets_BS + noise) % 300)
            batches.append(replace(batch, weights_BS=weights, targets_BS=targets, damaged=("x",) * noise))
        reports.append(engine.step(batches, proceed, step=1, learning_rate=0.0)[0])
    return reports[0], reports[1]


def test_masked_targets_do_not_count_and_damage_is_summed() -> None:
    for clean, noisy in run_distributed(masked, 2, Layout(data=2, zero=1, accumulation=3)):
        assert noisy.loss == clean.loss
        assert noisy.gradient_norm == clean.gradient_norm
        assert (clean.damaged, noisy.damaged) == (0, 6)
        assert (clean.samples, clean.tokens) == (12, 12 * 32)


def without_batches(rank: int) -> str:
    config = make_config(Layout(data=2, zero=1))
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    batches = [] if mesh.rank == rank else make_batches(config, mesh, 1)
    with pytest.raises(BatchesMissing):
        engine.step(batches, proceed, step=1, learning_rate=0.0)
    return "raised"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_batches_stops_all(rank: int) -> None:
    assert run_distributed(without_batches, 2, rank) == ["raised"] * 2
