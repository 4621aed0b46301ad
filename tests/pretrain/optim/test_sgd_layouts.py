"""SGD under DeepSpeed's wrappers, as AdamW: the same in every layout, resumed exactly, back from a snapshot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.courses import Losses, largest_difference
from support.distributed import run_distributed
from support.engine_state import state
from support.runs import (
    contents,
    differences,
    metrics,
    newest_checkpoint,
    run_and_stop,
    run_config,
    run_to_end,
)
from support.steps import train as take
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed, slow
from support.watched import kinds, run, watched

from pretrain.backend.host_copy import copied
from pretrain.checkpoint.snapshots import SnapshotStore
from pretrain.config.run import RunConfig
from pretrain.optim.config import SGDConfig
from pretrain.step import Action, StepReport, TrainState, Verdict

STEPS, RATE = 20, 0.1
PLAIN: dict[str, Any] = {"positions": "learned"}
SIGMA: dict[str, Any] = {**PLAIN, "reparametrization": "sigma"}
MOMENTUM: dict[str, Any] = {}
NESTEROV = {"nesterov": True, "weight_decay": 0.01}
NO_MOMENTUM = {"momentum": 0.0}


def with_sgd(config: RunConfig, **settings: Any) -> RunConfig:
    sgd = SGDConfig(**{"learning_rate": RATE, "gradient_clipping": 0.5, **settings})
    return config.model_copy(update={"optimizer": sgd})


def course(layout: Layout, model: dict[str, Any], settings: dict[str, Any]) -> Losses:
    """(loss, gradient norm) of each step, then the validation loss and its weight."""
    config = with_sgd(make_config(layout, **model), **settings)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    losses = []
    for step in range(1, STEPS + 1):
        report, _ = engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=RATE)
        losses.append((report.loss, report.gradient_norm))
    validation = engine.evaluate(make_batches(config, mesh, 0))
    return [*losses, (validation.loss, validation.targets)]


AGREE = [
    slow(Layout(tensor=2), PLAIN, MOMENTUM),
    slow(Layout(pipeline=2, accumulation=3), PLAIN, MOMENTUM),
    *(slow(Layout(data=2, zero=stage), PLAIN, MOMENTUM) for stage in (1, 2)),
    slow(Layout(data=2, zero=3), PLAIN, MOMENTUM),
    (Layout(tensor=2, pipeline=2, accumulation=3), PLAIN, MOMENTUM),
    (Layout(tensor=2, data=2, zero=1), SIGMA, MOMENTUM),
    (Layout(data=2, zero=2, accumulation=3), PLAIN, NESTEROV),
    (Layout(data=2, zero=1), PLAIN, NO_MOMENTUM),
]


@pytest.mark.parametrize(("layout", "model", "settings"), AGREE, ids=str)
def test_layouts_agree(layout: Layout, model: dict[str, Any], settings: dict[str, Any]) -> None:
    (reference,) = run_distributed(course, 1, Layout(), model, settings)
    courses = run_distributed(course, layout.world_size, layout, model, settings)
    assert all(own == courses[0] for own in courses), "ranks report different numbers"
    assert largest_difference(courses[0], reference, 0) <= 1e-5
    assert largest_difference(courses[0], reference, 1) <= 1e-5


@pytest.mark.parametrize(
    "layout",
    [
        slow(Layout(dtype="bf16", zero=0)),
        Layout(dtype="bf16", data=2, zero=2),
        Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3),
    ],
    ids=str,
)
def test_bf16_stays_close(layout: Layout) -> None:
    (reference,) = run_distributed(course, 1, Layout(), PLAIN, MOMENTUM)
    ours = run_distributed(course, layout.world_size, layout, PLAIN, MOMENTUM)[0]
    assert largest_difference(ours, reference, 0) <= 2e-3
    assert largest_difference(ours, reference, 1) <= 3e-2


def against_torch(settings: dict[str, Any]) -> float:
    """How far the weights after 5 steps are from those of torch's SGD on the same gradients, without DeepSpeed."""
    config = with_sgd(make_config(Layout(zero=1), **PLAIN), gradient_clipping=0.0, **settings)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    sgd = config.optimizer
    assert isinstance(sgd, SGDConfig)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in engine.module.parameters()]
    groups = [{"params": [p for p in copies if p.ndim > 1]}, {"params": [p for p in copies if p.ndim == 1]}]
    plain = torch.optim.SGD(groups, lr=RATE, momentum=sgd.momentum, nesterov=sgd.nesterov)
    plain.param_groups[0]["weight_decay"] = sgd.weight_decay

    def judge(report: StepReport) -> Verdict:
        gradients = {id(held.parameter): held.gradient for held in engine._gate.gradients()}
        for copy, parameter in zip(copies, engine.module.parameters(), strict=True):
            copy.grad = gradients[id(parameter)].detach().clone().view_as(copy)
        return Verdict(Action.PROCEED)

    for step in range(1, 6):
        engine.step(make_batches(config, mesh, step), judge, step=step, learning_rate=RATE)
        plain.step()
    pairs = zip(copies, engine.module.parameters(), strict=True)
    return max((ours - theirs).abs().max().item() for theirs, ours in pairs)


@pytest.mark.parametrize("settings", [MOMENTUM, NESTEROV, NO_MOMENTUM], ids=str)
def test_no_wrapper_adds_anything_to_the_method(settings: dict[str, Any]) -> None:
    """No momentum is left from the step over zero gradients that DeepSpeed warms up with."""
    (difference,) = run_distributed(against_torch, 1, settings)
    assert difference < 1e-6


RESUMED = [
    slow(Layout(tensor=2), PLAIN, MOMENTUM),
    (Layout(pipeline=2, accumulation=3), PLAIN, MOMENTUM),
    *(slow(Layout(data=2, zero=stage), PLAIN, MOMENTUM) for stage in (1, 2)),
    (Layout(dtype="bf16", data=2, zero=1), PLAIN, MOMENTUM),
    slow(Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), PLAIN, MOMENTUM),
    slow(Layout(dtype="bf16"), PLAIN, MOMENTUM),
    slow(Layout(data=2, zero=3), PLAIN, MOMENTUM),
    (Layout(tensor=2, zero=1), SIGMA, NESTEROV),
    (Layout(data=2, zero=1), PLAIN, NO_MOMENTUM),
]


@pytest.mark.parametrize(("layout", "model", "settings"), RESUMED, ids=str)
def test_resumed_equals_uninterrupted(
    layout: Layout, model: dict[str, Any], settings: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    twin, config = (
        with_sgd(
            run_config(layout, tmp_path / name, corpus, model={**model, "num_layers": 2, "hidden_size": 16}),
            **settings,
        )
        for name in ("twin", "run")
    )
    assert set(run_distributed(run_to_end, layout.world_size, twin)) == {"finished"}
    assert set(run_distributed(run_and_stop, layout.world_size, config, 3)) == {"preempted"}
    assert set(run_distributed(run_to_end, layout.world_size, config)) == {"finished"}
    ours, theirs = (contents(newest_checkpoint(tmp_path / name)) for name in ("run", "twin"))
    assert differences(ours, theirs) == []
    for key in ("loss", "gradient_norm", "validation_loss"):
        assert metrics(tmp_path / "run", key) == metrics(tmp_path / "twin", key)


def there_and_back(layout: Layout, settings: dict[str, Any], start: int) -> tuple[list[str], set[str]]:
    """`start` steps, a snapshot, 3 steps, restore, the 3 again: what differs; and the names of what is kept."""
    config = with_sgd(make_config(layout, **SIGMA), **settings)
    engine = make_engine(config, make_mesh(config.parallel))
    store = SnapshotStore(2, 0)
    take(engine, config, 1, start)
    assert store.take(engine, TrainState(step=start), {}, {}) == ""
    losses = take(engine, config, start + 1, start + 3)
    end = copied(engine.state())
    snapshot = store.choose(start)
    assert snapshot is not None
    assert store.restore(engine, snapshot) is not None
    again = take(engine, config, start + 1, start + 3)
    kept = {name for moments in end["moments"] for name in moments}
    return differences(copied(engine.state()), end) + differences(again, losses), kept


BACK = [
    (Layout(tensor=2), MOMENTUM, 2),
    (Layout(data=2, zero=2), MOMENTUM, 2),
    (Layout(data=2, zero=1), MOMENTUM, 0),
    (Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), NESTEROV, 2),
    (Layout(data=2, zero=1), NO_MOMENTUM, 2),
]


@pytest.mark.parametrize(("layout", "settings", "start"), BACK, ids=str)
def test_a_snapshot_brings_the_momentum_back(layout: Layout, settings: dict[str, Any], start: int) -> None:
    for changed, kept in run_distributed(there_and_back, layout.world_size, layout, settings, start):
        assert changed == []
        assert kept == (set() if settings == NO_MOMENTUM else {"momentum_buffer"})


def vetoed(layout: Layout) -> list[str]:
    """What a withheld update changes."""
    config = with_sgd(make_config(layout, **SIGMA))
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    engine.step(make_batches(config, mesh, 1), proceed, step=1, learning_rate=RATE)
    before = state(engine)
    engine.step(
        make_batches(config, mesh, 2), lambda report: Verdict(Action.VETO), step=2, learning_rate=RATE
    )
    return differences(state(engine), before)


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(data=2, zero=2)], ids=str)
def test_a_vetoed_step_leaves_no_trace(layout: Layout) -> None:
    assert run_distributed(vetoed, layout.world_size, layout) == [[], []]


def test_a_rollback_in_a_run(corpus: Path, tmp_path: Path) -> None:
    """The whole way, watchdog included: updates withheld, back to the snapshot, on without those samples."""
    config = with_sgd(watched(Layout(data=2, zero=1), tmp_path, corpus))
    assert run_distributed(run, 2, config, "nan_gradient@20+4") == ["finished"] * 2
    told = kinds(tmp_path)
    assert told.count("veto") == 3
    assert [kind for kind in told if kind.startswith("rollback")] == ["rollback_intent", "rollback_done"]
    assert told[-1] == "done"
