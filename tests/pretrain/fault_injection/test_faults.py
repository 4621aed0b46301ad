"""Planted faults: when they strike, where, and that the signals see them."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.distributed import run_distributed
from support.engine_state import state
from support.probed import probed_config
from support.runs import differences, run_config
from support.training import Layout, make_batches, make_config, make_engine, make_mesh

from data_pipeline.reading.stream import BatchStream
from data_pipeline.text.source import TextSource
from pretrain.errors import ConfigurationError
from pretrain.fault_injection.faults import KINDS, Fault, make_fault
from pretrain.fault_injection.plan import FAULTS, FaultPlan
from pretrain.step import Action, StepReport, Verdict

ACROSS = [
    Layout(tensor=2, accumulation=3),
    Layout(pipeline=2, accumulation=3),
    Layout(data=2, accumulation=3),
    Layout(data=2, zero=3, accumulation=3),
    Layout(dtype="bf16", data=2, zero=1, accumulation=3),
]


def course(
    layout: Layout, faults: list[str], steps: int, *, rate: float = 1e-3, model: dict[str, Any] | None = None
) -> tuple[list[StepReport], Any]:
    """Reports of some steps with faults, every second one dense, and the weights at the end."""
    config = probed_config(layout, {"positions": "learned", **(model or {})}, {"every_steps": 2})
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    planted = [make_fault(FaultPlan.parse(fault, 100), config, mesh) for fault in faults]
    reports = []
    for step in range(1, steps + 1):
        for fault in planted:
            fault.before_step(engine, step)
        batches = make_batches(config, mesh, step)
        reports.append(engine.step(batches, accept_finite, step=step, learning_rate=rate)[0])
    return reports, state(engine)


def accept_finite(report: StepReport) -> Verdict:
    return Verdict(Action.PROCEED if report.finite else Action.VETO)


# Plans


def test_every_fault_has_a_description_and_a_class() -> None:
    assert list(FAULTS) == list(KINDS)


def test_a_plan_reads_its_own_spelling() -> None:
    plan = FaultPlan.parse("poisoned_samples@70+5", 100)
    assert plan == FaultPlan("poisoned_samples", 70, 5) == FaultPlan.parse(str(plan), 100)
    assert [step for step in range(100) if plan.covers(step)] == [70, 71, 72, 73, 74]
    assert FaultPlan.parse("tev_drift", 90) == FaultPlan("tev_drift", 61, FAULTS["tev_drift"].steps)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nan_gradients", "did you mean nan_gradient?"),
        ("x", "one of poisoned_samples, "),
        ("nan_gradient@", "NAME[@STEP[+STEPS]]"),
        ("nan_gradient@0", "1 to 100 (run.steps)"),
        ("nan_gradient@101", "1 to 100 (run.steps)"),
        ("nan_gradient@5+0", "1 to 100 (run.steps)"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FaultPlan.parse(text, 100)
    assert told in str(caught.value)


# Faults on an engine


def strikes(layout: Layout) -> list[StepReport]:
    return course(layout, ["nan_gradient@2", "infinite_loss@3", "replica_flip@4", "exponent_flip@6"], 6)[0]


@pytest.mark.parametrize("layout", ACROSS, ids=str)
def test_faults_of_one_rank_are_seen_by_all_in_the_step_that_has_them(layout: Layout) -> None:
    copies = layout.pipeline == 2 or (layout.data == 2 and layout.zero < 3)
    every_rank = run_distributed(strikes, 2, layout)
    for reports in every_rank:
        assert repr(reports) == repr(every_rank[0])
        assert [report.finite for report in reports][:5] == [True, False, False, True, True]
        assert math.isnan(reports[1].gradient_norm)
        assert math.isfinite(reports[2].gradient_norm)
        out_of_reach = [report.measures.get("tev_reach", 0) > 1 for report in reports]
        assert [out_of_reach[1], out_of_reach[3], out_of_reach[5]] == [False, True, True]
        assert reports[5].measures["tev_reach_rank"] == layout.data - 1
        differ = [report.measures.get("replicas_differ", 0) for report in reports]
        assert [differ[1], differ[3]] == [0, copies]
        assert "replicas_odd_rank" not in reports[3].measures, "of two copies, either may be wrong"


def test_a_learning_rate_goes_by_the_update() -> None:
    fault = make_fault(FaultPlan("high_learning_rate", 3, 2), make_config(Layout()), cast(Any, None))
    assert [fault.learning_rate(update, 1.0) for update in range(6)] == [1, 1, 20, 20, 1, 1]
    assert Fault().learning_rate(0, 0.5) == 0.5


def drift(layout: Layout, steps: int) -> list[float]:
    """TEV of a table that nothing else moves."""
    reports, _ = course(layout, ["tev_drift@2+50"], steps, rate=0.0)
    return [report.measures["tev_mean"] for report in reports]


@pytest.mark.slow
def test_drift_is_one_vector_for_all_rows_in_every_layout() -> None:
    (alone,) = run_distributed(drift, 1, Layout(accumulation=1), 41)
    common = 40 * 0.002 * 5 * 0.02
    assert alone[-1] == pytest.approx(math.hypot(alone[0], common), rel=0.04), "of 32 random entries"
    assert alone[-1] > 1.05 * alone[0]
    for layout in ACROSS:
        late = int(layout.zero > 0 or layout.dtype == "bf16")  # copies of the optimizer's weights come later
        for tev in run_distributed(drift, 2, layout, 6):
            assert tev[1 + late :] == pytest.approx(alone[1 : 6 - late], rel=1e-3 if late else 1e-6)


MODELS: list[dict[str, Any]] = [{}, {"attention": {"kind": "mlra"}}, {"reparametrization": "sigma"}]


def exploded(layout: Layout, model: dict[str, Any]) -> list[StepReport]:
    return course(layout, ["exploding_logits@3"], 6, model={**model, "init_std": 0.2})[0]


@pytest.mark.parametrize("model", MODELS, ids=["dense", "mlra", "sigma"])
@pytest.mark.parametrize("layout", [Layout(tensor=2, accumulation=3), Layout(data=2, zero=2)], ids=str)
def test_exploding_logits_make_one_block_attend_to_few(layout: Layout, model: dict[str, Any]) -> None:
    for reports in run_distributed(exploded, 2, layout, model):
        before, after = reports[1].measures, reports[-1].measures
        name = "attention_entropy_mean/layer_0"
        assert after[f"{name}2"] < 0.6 * before[f"{name}2"]
        assert after[f"{name}1"] > 0.9 * before[f"{name}1"]


def before_its_time() -> list[str]:
    """What a run differs in from its twin when faults are to strike later."""
    layout = Layout(accumulation=3)
    ours, theirs = (course(layout, faults, 4) for faults in ([f"{name}@50" for name in FAULTS], []))
    assert ours[0] == theirs[0]
    return differences(ours[1], theirs[1])


def test_a_fault_changes_nothing_before_its_time() -> None:
    assert run_distributed(before_its_time, 1) == [[]]


# Samples


def blocks(stream: Any, steps: int) -> dict[int, list[tuple[list[int], list[int]]]]:
    """By first draw of the step: tokens and targets of its samples."""
    found = {}
    for _ in range(steps):
        batches = next(stream)
        rows = [row for batch in batches for row in zip(batch.tokens_BS, batch.targets_BS, strict=True)]
        found[stream.sample_range()[0]] = [(tokens.tolist(), targets.tolist()) for tokens, targets in rows]
    return found


def streams(fault: str, corpus: Path, rank: int, size: int) -> tuple[Any, Any]:
    """A stream with a fault and its twin without."""
    config = run_config(Layout(data=size), corpus, corpus)
    mesh = cast(Any, SimpleNamespace(data=SimpleNamespace(rank=rank, size=size)))
    plain, own = (
        BatchStream(TextSource(), config.data, seed=3, data_rank=rank, data_size=size) for _ in range(2)
    )
    return make_fault(FaultPlan.parse(fault, 100), config, mesh).wrap_batches(own), plain


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
def test_poison_goes_by_the_draw(corpus: Path, rank: int, size: int) -> None:
    stream, plain = streams("poisoned_samples@2+2", corpus, rank, size)
    ours, theirs = blocks(stream, 4), blocks(plain, 4)
    assert [draw for draw in ours if ours[draw] != theirs[draw]] == [12, 24]
    for (tokens, targets), (clean_tokens, clean_targets) in zip(ours[12], theirs[12], strict=True):
        assert tokens == clean_tokens
        assert sorted(targets) == sorted(clean_targets)
    start = {**plain.state(), "position": 0}
    stream.seek(start)
    assert blocks(stream, 4) == ours, "a replay meets it again"
    stream.seek(start)
    stream.skip([(12, 36)])
    plain.seek(start)
    plain.skip([(12, 36)])
    assert blocks(stream, 3) == blocks(plain, 3), "a skip avoids it"
    stream.close()
    plain.close()


def test_garbage_is_one_global_batch(corpus: Path) -> None:
    stream, plain = streams("garbage_batch@2", corpus, 0, 1)
    ours, theirs = blocks(stream, 3), blocks(plain, 3)
    assert [draw for draw in ours if ours[draw] != theirs[draw]] == [12]
    for tokens, targets in ours[12]:
        assert tokens[1:] == targets[:-1]
        assert 0 <= min(tokens) <= max(tokens) < 300
    stream.close()
    plain.close()


def test_what_a_model_lacks_cannot_be_struck() -> None:
    config = make_config(Layout())
    outline = config.model.outline(config.data)
    bare = replace(
        outline, layers=tuple(replace(layer, table=None, attentions=()) for layer in outline.layers)
    )
    for name, kind in FAULTS.items():
        FaultPlan(name, 1, 1).check(outline)
        if kind.needs:
            with pytest.raises(ConfigurationError, match="it can have poisoned_samples, garbage_batch"):
                FaultPlan(name, 1, 1).check(bare)
