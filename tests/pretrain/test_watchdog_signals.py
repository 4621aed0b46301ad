"""Signals of the watchdog: dense looks on demand, the ranks' digest, AdamW's reach, copies that differ."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_distributed
from runs import differences
from test_engine import state
from test_probes_layouts import probed_config
from training import Layout, make_batches, make_config, make_engine, make_mesh, proceed

from pretrain.config import OptimizerConfig, RunConfig
from pretrain.engine import TrainEngine
from pretrain.probes.reach import RowReach, reach_applies
from pretrain.probes.replicas import checksum
from pretrain.records import Action, StepReport, Verdict
from pretrain.unanimity import slots_of, unanimous
from pretrain.watchdog.reach import adam_reach

RARELY: dict[str, Any] = {"every_steps": 100}
TIED: dict[str, Any] = {"positions": "learned"}
PRECISE = [Layout(data=2, zero=stage, accumulation=3) for stage in range(4)]
HALF = [Layout(dtype="bf16", data=2, zero=stage, accumulation=3) for stage in range(4)]
ACROSS = [
    Layout(tensor=2, accumulation=3),
    Layout(pipeline=2, accumulation=3),
    Layout(pipeline=2, zero=1, accumulation=3),
    Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3),
]


def take(engine: TrainEngine, config: RunConfig, mesh: Any, step: int, **options: Any) -> StepReport:
    options = {"judge": proceed, "learning_rate": 1e-3, **options}
    report, _ = engine.step(make_batches(config, mesh, step), step=step, **options)
    return report


# The digest


@pytest.mark.parametrize("ranks", [1, 2, 3, 2**20])
def test_one_deviating_digest_is_seen_among_any_number_of_ranks(ranks: int) -> None:
    for common, odd in [(2**64 - 1, 2**64 - 2), (0, 1 << 63), (0xFFFF << 16, 0), (7 << 40, 7 << 40)]:
        most = [(ranks - 1) * slot for slot in slots_of(common)]
        sums = [a + b for a, b in zip(most, slots_of(odd), strict=True)]
        assert unanimous(sums, ranks) == (common == odd or ranks == 1)


def told(layout: Layout, digests: list[int]) -> list[bool]:
    config = make_config(layout)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    return [
        take(engine, config, mesh, step, digest=d * mesh.rank + 5).unanimous for step, d in enumerate(digests)
    ]


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(pipeline=2, accumulation=3)], ids=str)
def test_the_report_tells_of_ranks_that_have_decided_otherwise(layout: Layout) -> None:
    expected = [True, False, False, True]
    assert run_distributed(told, 2, layout, [0, 1, 1 << 62, 1 << 64]) == [expected] * 2


# Dense looks on demand


def asked(layout: Layout, probes: dict[str, Any], dense: tuple[int, ...], steps: int = 6) -> tuple[Any, Any]:
    config = probed_config(layout, {**TIED, "dropout": 0.1}, probes)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [take(engine, config, mesh, step, dense=step in dense) for step in range(1, steps + 1)]
    return reports, state(engine)


def asked_and_not(layout: Layout) -> tuple[list[StepReport], list[StepReport], list[str]]:
    (ours, end), (always, _) = asked(layout, RARELY, (2, 3, 5)), asked(layout, {"every_steps": 1}, ())
    plain, plain_end = asked(layout, RARELY, ())
    assert [(r.loss, r.gradient_norm) for r in ours] == [(r.loss, r.gradient_norm) for r in plain]
    return ours, always, differences(end, plain_end)


@pytest.mark.parametrize(
    "layout", [Layout(data=2, zero=2, accumulation=3), Layout(pipeline=2, accumulation=3)], ids=str
)
def test_a_dense_look_on_demand_sees_what_one_by_number_sees(layout: Layout) -> None:
    for ours, always, changed in run_distributed(asked_and_not, 2, layout):
        assert changed == []
        for report, full in zip(ours, always, strict=True):
            if report.step not in (2, 3, 5):
                assert set(report.measures) == {
                    n for n in full.measures if n in ("tev_mean", "tev_std", "tev_max", "tev_reach")
                }
                continue
            late = {name for name in full.measures if name.startswith("update_rms") and report.step != 3}
            assert set(report.measures) == set(full.measures) - late
            for name, value in report.measures.items():
                assert value == pytest.approx(full.measures[name], rel=5e-2 if "sigma" in name else 0), name


# AdamW's reach


def judge(report: StepReport) -> Verdict:
    return Verdict(Action.PROCEED if report.finite and report.step % 5 else Action.VETO)


RATES = [1e-3, 0.3, 1e-7, 0.05, 1e-2, 3.0, 1e-5, 30.0, 1e-2, 1e-3, 0.0, 1e-2, 1e-4, 0.5, 1e-6]


def reached(layout: Layout, model: dict[str, Any], beta2: float) -> list[float]:
    config = probed_config(layout, model, {"every_steps": 4})
    optimizer = config.optimizer.model_copy(update={"beta2": beta2, "gradient_clipping": 0.0})
    config = config.model_copy(update={"optimizer": optimizer})
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    ratios = []
    for step, rate in enumerate(RATES, start=1):
        report = take(engine, config, mesh, step, judge=judge, learning_rate=rate)
        assert ("tev_reach" in report.measures) == (step > 1)
        ratios += [report.measures["tev_reach"]] if step > 1 else []
        if "replicas_differ" in report.measures:
            assert report.measures["replicas_differ"] == 0
    return ratios


@pytest.mark.parametrize("layout", [*PRECISE, *HALF, *ACROSS], ids=str)
def test_rows_never_move_farther_than_adamw_can_move_them(layout: Layout) -> None:
    every_rank = run_distributed(reached, layout.world_size, layout, TIED, 0.95)
    for ratios in every_rank:
        assert ratios == every_rank[0]
        assert max(ratios) <= 1
        assert max(ratios) > 0.3, "the bound is far from what happens"
