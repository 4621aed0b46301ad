"""Sharpness-aware steps: equal to the plain method, the same in every layout, and nothing of them stays behind."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist
from support.courses import Losses, largest_difference
from support.distributed import run_distributed
from support.plain_sam import against_the_plain_method, sharpness_aware_course, with_sam
from support.probed import probed_config
from support.runs import (
    contents,
    differences,
    metrics,
    newest_checkpoint,
    run_and_stop,
    run_config,
    run_to_end,
)
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed, slow
from support.watched import kinds, run, watched
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.backend.host_copy import copied
from pretrain.config.run import RunConfig
from pretrain.engine.engine import Judge, TrainEngine
from pretrain.optim.config import AdamWConfig, LAMBConfig, OptimizerConfig, SGDConfig, SharpnessAwareConfig
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.policy import judge_finite

SAM = SharpnessAwareConfig(rho=0.05)
ASAM = SharpnessAwareConfig(rho=0.5, adaptive=True)
SGD = SGDConfig(learning_rate=0.1, gradient_clipping=0.5)
ADAMW = AdamWConfig(learning_rate=1e-3, gradient_clipping=0.5)
LAMB = LAMBConfig(learning_rate=0.01, gradient_clipping=0.5)
PLAIN: dict[str, Any] = {"positions": "learned"}
DROPOUT: dict[str, Any] = {"dropout": 0.1}
SIGMA: dict[str, Any] = {**PLAIN, "reparametrization": "sigma"}


def take(engine: TrainEngine, config: RunConfig, step: int, judge: Judge = proceed) -> StepReport:
    batches = make_batches(config, engine.mesh, step)
    report, _ = engine.step(batches, judge, step=step, learning_rate=config.optimizer.learning_rate)
    return report


def course(
    layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig, sam: SharpnessAwareConfig
) -> Losses:
    return sharpness_aware_course(with_sam(make_config(layout, **model), optimizer, sam), make_batches)


AGREE = [
    (Layout(tensor=2), PLAIN, SGD, SAM),
    (Layout(pipeline=2, accumulation=3), DROPOUT, ADAMW, ASAM),
    (Layout(data=2, zero=1), PLAIN, ADAMW, SAM),
    (Layout(tensor=2, data=2, zero=1), SIGMA, SGD, ASAM),
    slow(Layout(tensor=2, data=2, zero=2), {**SIGMA, "sigma_vectors": 8}, SGD, SAM),
    slow(Layout(data=2, zero=2, accumulation=3), PLAIN, SGD, ASAM),
    slow(Layout(data=2, zero=3), PLAIN, ADAMW, ASAM),
    slow(Layout(data=2, zero=3), PLAIN, SGD, SAM),
    slow(Layout(tensor=2, pipeline=2, accumulation=3), SIGMA, ADAMW, SAM),
    slow(Layout(tensor=2, data=2), PLAIN, LAMB, SAM),
]


@pytest.mark.parametrize(("layout", "model", "optimizer", "sam"), AGREE, ids=str)
def test_layouts_agree(
    layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig, sam: SharpnessAwareConfig
) -> None:
    alone = Layout(accumulation=layout.accumulation)  # masks go by micro-batches
    (reference,) = run_distributed(course, 1, alone, model, optimizer, sam)
    courses = run_distributed(course, layout.world_size, layout, model, optimizer, sam)
    assert all(own == courses[0] for own in courses), "ranks report different numbers"
    assert largest_difference(courses[0], reference, 0) <= 1e-5
    assert largest_difference(courses[0], reference, 1) <= 1e-5


@pytest.mark.parametrize(
    ("layout", "optimizer"),
    [
        (Layout(dtype="bf16", data=2, zero=2), SGD),
        slow(Layout(dtype="bf16"), ADAMW),
        slow(Layout(dtype="bf16", data=2, zero=1), ADAMW),
        slow(Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), SGD),
        slow(Layout(dtype="bf16", data=2, zero=3), SGD),
    ],
    ids=str,
)
def test_bf16_stays_close(layout: Layout, optimizer: OptimizerConfig) -> None:
    (reference,) = run_distributed(course, 1, Layout(), PLAIN, optimizer, SAM)
    ours = run_distributed(course, layout.world_size, layout, PLAIN, optimizer, SAM)[0]
    assert largest_difference(ours, reference, 0) <= 3e-3
    assert largest_difference(ours, reference, 1) <= 5e-2


# Against the plain method


@pytest.mark.parametrize(
    ("model", "optimizer", "sam"),
    [
        (PLAIN, SGD, SAM),
        ({"activation": "swiglu", "positions": "rotary"}, ADAMW, ASAM),
        (SIGMA, ADAMW, SAM),
        ({**SIGMA, "sigma_vectors": 8}, SGD, ASAM),
    ],
    ids=str,
)
def test_it_is_the_plain_method_in_float64(
    model: dict[str, Any], optimizer: OptimizerConfig, sam: SharpnessAwareConfig
) -> None:
    config = with_sam(make_config(Layout(accumulation=2), **model), optimizer, sam)
    assert max(run_distributed(against_the_plain_method, 1, config, make_batches)[0]) <= 1e-10


# What stays behind


WITHHELD = ("judge", "second pass", "first pass")
"""What an update is withheld for: its judge, or a pass that is not finite."""


def withheld(layout: Layout, model: dict[str, Any], why: str) -> tuple[list[str], str]:
    """What such a step changes, and what its judge says."""
    rho = 1e30 if why == "second pass" else 0.05
    config = with_sam(make_config(layout, **model), ADAMW, SharpnessAwareConfig(rho=rho, from_step=2))
    engine = make_engine(config, make_mesh(config.parallel))
    take(engine, config, 1)
    before = weights_and_moments(engine)
    if why == "first pass":
        parameter = next(engine.module.parameters())
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    verdicts = []

    def judge(report: StepReport) -> Verdict:
        verdicts.append(
            Verdict(Action.VETO) if why == "judge" else judge_finite(report, TrainState(step=1, updates=1))
        )
        return verdicts[0]

    report = take(engine, config, 2, judge)
    assert (report.passes, math.isfinite(report.loss)) == (2, True)
    ascended = report.measures["ascended_loss"]
    assert why != "judge" or ascended > report.loss
    assert why != "first pass" or ascended == report.loss, "nothing ascends by numbers that are none"
    assert verdicts[0].action is Action.VETO
    return differences(weights_and_moments(engine), before), verdicts[0].reason


def weights_and_moments(engine: TrainEngine) -> Any:
    """All that training changes, but what counts steps and what probes remember."""
    live = copied(engine.state())
    return {name: part for name, part in live.items() if name not in ("counters", "groups")} | {
        "extra": live["extra"]["gammas"].get("state", {})
    }


LAYOUTS = [
    (Layout(tensor=2), SIGMA),
    (Layout(dtype="bf16", data=2, zero=1), PLAIN),
    slow(Layout(dtype="bf16"), PLAIN),
    slow(Layout(data=2, zero=2), {**SIGMA, "sigma_vectors": 8}),
    slow(Layout(dtype="bf16", data=2, zero=2), SIGMA),
    slow(Layout(dtype="bf16", data=2, zero=3), PLAIN),
    slow(Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), SIGMA),
]


@pytest.mark.parametrize("why", WITHHELD)
@pytest.mark.parametrize(("layout", "model"), LAYOUTS, ids=str)
def test_a_withheld_update_leaves_no_trace(layout: Layout, model: dict[str, Any], why: str) -> None:
    for changed, reason in run_distributed(withheld, layout.world_size, layout, model, why):
        assert changed == []
        assert ("ascended loss nan" in reason) == (why == "second pass")


def ordinary_steps(layout: Layout) -> tuple[list[str], list[int], list[str]]:
    """What differs before the first sharpness-aware step, the passes of all, and of DeepSpeed's counts after it."""
    every_third = SharpnessAwareConfig(rho=0.05, every_steps=3, from_step=4)
    with_, without = (
        with_sam(make_config(layout, **SIGMA), ADAMW, sam) for sam in (every_third, SharpnessAwareConfig())
    )
    ours, theirs = (make_engine(config, make_mesh(config.parallel)) for config in (with_, without))
    reports = [(take(ours, with_, step), take(theirs, without, step)) for step in range(1, 6)]
    changed = differences(copied(ours.state()), copied(theirs.state()))
    changed += [str(a) for a, b in reports if a != b]
    last = take(ours, with_, 6)
    take(theirs, without, 6)
    counters = differences(ours.state()["counters"], theirs.state()["counters"])
    return changed, [*(a.passes for a, _ in reports), last.passes], counters


@pytest.mark.parametrize(
    "layout", [Layout(data=2, zero=1), slow(Layout(pipeline=2, accumulation=3))], ids=str
)
def test_steps_between_are_ordinary_to_the_bit(layout: Layout) -> None:
    for found in run_distributed(ordinary_steps, layout.world_size, layout):
        assert found == ([], [1, 1, 1, 1, 1, 2], [])


RESUMED = [
    (Layout(dtype="bf16", data=2, zero=1), PLAIN),
    slow(Layout(tensor=2), SIGMA),
    slow(Layout(pipeline=2, accumulation=3), PLAIN),
    slow(Layout(data=2, zero=3), PLAIN),
    slow(Layout(dtype="bf16"), PLAIN),
]


@pytest.mark.parametrize(("layout", "model"), RESUMED, ids=str)
def test_resumed_equals_uninterrupted(
    layout: Layout, model: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    small = {**model, "num_layers": 2, "hidden_size": 16}
    twin, config = (
        with_sam(
            run_config(layout, tmp_path / name, corpus, model=small),
            ADAMW,
            SharpnessAwareConfig(rho=0.05, every_steps=2),
        )
        for name in ("twin", "run")
    )
    assert set(run_distributed(run_to_end, layout.world_size, twin)) == {"finished"}
    assert set(run_distributed(run_and_stop, layout.world_size, config, 2)) == {"preempted"}
    assert set(run_distributed(run_to_end, layout.world_size, config)) == {"finished"}
    ours, theirs = (contents(newest_checkpoint(tmp_path / name)) for name in ("run", "twin"))
    assert differences(ours, theirs) == []
    for key in ("loss", "ascended_loss", "ascent_gradient_norm", "validation_loss"):
        assert metrics(tmp_path / "run", key) == metrics(tmp_path / "twin", key)
    assert sorted(metrics(tmp_path / "run", "ascended_loss")) == [2, 4, 6, 8]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "vetoes"), [("nan_gradient@20+4", 3), ("replica_flip@20", 0)])
def test_faults_in_a_run(fault: str, vetoes: int, corpus: Path, tmp_path: Path) -> None:
    """The watchdog sees bad numbers and copies that differ as it does in ordinary steps, and goes back."""
    every_second = SharpnessAwareConfig(rho=0.05, every_steps=2)
    config = with_sam(watched(Layout(data=2, zero=1), tmp_path, corpus), ADAMW, every_second)
    config = config.model_copy(update={"probes": config.probes.model_copy(update={"every_steps": 1})})
    assert run_distributed(run, 2, config, fault) == ["finished"] * 2
    told = kinds(tmp_path)
    assert told.count("veto") == vetoes
    assert [kind for kind in told if kind.startswith("rollback")] == ["rollback_intent", "rollback_done"]
    assert told[-1] == "done"


# Its two passes


NOWHERE = SharpnessAwareConfig(rho=1e-30)
"""It moves no weight by a bit."""


def nowhere(layout: Layout, model: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs from ordinary steps, and which measures sharpness-aware steps have beside theirs."""
    probed = probed_config(layout, model, {"every_steps": 1})
    with_, without = with_sam(probed, SGD, NOWHERE), with_sam(probed, SGD, SharpnessAwareConfig())
    ours, theirs = (make_engine(config, make_mesh(config.parallel)) for config in (with_, without))
    changed, more = [], []
    for step in (1, 2):
        report, plain = take(ours, with_, step), take(theirs, without, step)
        ascent = {name: report.measures[name] for name in ("ascended_loss", "ascent_gradient_norm")}
        changed += differences(ascent, dict(zip(ascent, (report.loss, report.gradient_norm), strict=True)))
        changed += [name for name, value in plain.measures.items() if report.measures[name] != value]
        more = sorted(set(report.measures) - set(plain.measures))
    return changed + differences(copied(ours.state()), copied(theirs.state())), more


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        (Layout(pipeline=2, accumulation=3), DROPOUT),
        slow(Layout(tensor=2, accumulation=2), DROPOUT),
        slow(Layout(data=2, zero=2), {**DROPOUT, "activation_checkpointing": True}),
        slow(Layout(data=2, zero=3), DROPOUT),
    ],
    ids=str,
)
def test_both_passes_have_the_same_masks(layout: Layout, model: dict[str, Any]) -> None:
    """With an ascent of no length they are one and the same, and so is all that probes measure."""
    for changed, more in run_distributed(nowhere, layout.world_size, layout, model):
        assert changed == []
        assert more == ["ascended_loss", "ascent_gradient_norm"]


def looks() -> tuple[list[str], float]:
    """Which measures of a first step are not those of an ordinary one; how far norms of layers are from the norm."""
    probed = probed_config(Layout(accumulation=2), SIGMA, {"every_steps": 1})
    reports = []
    for sam in (SharpnessAwareConfig(rho=1.0), SharpnessAwareConfig()):
        config = with_sam(probed, SGD, sam)
        reports.append(take(make_engine(config, make_mesh(config.parallel)), config, 1))
    ours, plain = reports
    assert (ours.loss, ours.measures["ascent_gradient_norm"]) == (plain.loss, plain.gradient_norm)
    layers = [value**2 for name, value in ours.measures.items() if name.startswith("gradient_norm/")]
    other = {name.partition("/")[0] for name, value in plain.measures.items() if ours.measures[name] != value}
    gammas = ours.gradient_norm**2 - sum(layers)
    return sorted(other), gammas / ours.gradient_norm**2


def test_probes_of_weights_look_at_the_first_pass_and_those_of_gradients_at_the_second() -> None:
    ((others, rest),) = run_distributed(looks, 1)
    assert others == ["gradient_norm", "gradient_variance"]
    assert 0 <= rest < 0.1, "norms of layers are not those of the gradient that is followed"


# What it costs


COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")
READS = ("item", "tolist", "cpu")


class Launches(TorchDispatchMode):
    """It counts operations that are not views, read no number of the host's and take no memory alone."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = str(function)
        self.count += not (function.is_view or "empty" in name or "_local_scalar_dense" in name)
        return function(*arguments, **(options or {}))


def counted(function: Any, count: Callable[[], None]) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        count()
        return function(*arguments, **options)

    return call


def costs(layout: Layout, model: dict[str, Any]) -> tuple[Counter[str], Counter[str], int]:
    """Collectives and reads of numbers in an ordinary step and in a sharpness-aware one, and what moving the weights
    there and back launches."""
    sgd = SGD.model_copy(update={"gradient_clipping": 0.0})  # which reads a number where it clips
    config = with_sam(make_config(layout, **model), sgd, SharpnessAwareConfig(rho=0.05, from_step=3))
    config = config.model_copy(update={"probes": config.probes.model_copy(update={"every_steps": 1000})})
    engine = make_engine(config, make_mesh(config.parallel))
    take(engine, config, 1)
    seen, found = Launches(), []
    for step in (2, 3):
        calls: Counter[str] = Counter()
        with ExitStack() as stack:
            for owner, name in [(dist, n) for n in COLLECTIVES] + [(Tensor, n) for n in READS]:
                function = counted(getattr(owner, name), partial(calls.update, [name]))
                stack.enter_context(patch.object(owner, name, function))
            for name in ("ascend", "put_back"):
                function = under(getattr(engine._sharpness_aware, name), seen)
                stack.enter_context(patch.object(engine._sharpness_aware, name, function))
            take(engine, config, step)
        found.append(calls)
    return found[0], found[1], seen.count


def under(function: Any, mode: TorchDispatchMode) -> Any:
    def call(*arguments: Any) -> Any:
        with mode:
            return function(*arguments)

    return call


@pytest.mark.parametrize(
    ("layout", "model"),
    [(Layout(data=2, zero=1), PLAIN), slow(Layout(), PLAIN), slow(Layout(tensor=2), SIGMA)],
    ids=str,
)
def test_its_cost_beside_a_second_pass_does_not_go_by_the_layers(
    layout: Layout, model: dict[str, Any]
) -> None:
    shallow, deep = (
        run_distributed(costs, layout.world_size, layout, {**model, "num_layers": depth})[0]
        for depth in (1, 4)
    )
    more = [
        {name: twice[name] - 2 * once[name] for name in (*COLLECTIVES, *READS)}
        for once, twice, _ in (shallow, deep)
    ]
    assert more[0] == more[1]
    assert more[0]["all_reduce"] == -2, (
        "a step agrees on weights, facts and slots of probes, a first pass on its norm"
    )
    assert all(more[0][name] <= 0 for name in READS)
    if model is PLAIN:  # sigmaReparam goes by the matrix
        assert shallow[2] == deep[2] < 40
