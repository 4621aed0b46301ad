"""Signals of the watchdog: full looks on demand, the ranks' digest, AdamW's reach, copies that differ."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.engine_state import state
from support.probed import probed_config
from support.runs import differences
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed, slow

from parallel.statistics import row_moments
from pretrain.config.run import RunConfig, WatchdogConfig
from pretrain.engine.engine import TrainEngine
from pretrain.engine.rank_digest import slots_of, unanimous
from pretrain.models.outline import stage_of
from pretrain.optim.config import AdamWConfig, OptimizerConfig, SGDConfig
from pretrain.optim.update_bound import adamw_update_bound
from pretrain.plan.plan import plan
from pretrain.probes.embedding import EmbeddingProbe
from pretrain.probes.replicas import ReplicaProbe, checksum
from pretrain.probes.row_bound import RowBound, row_bound_applies
from pretrain.step import Action, StepReport, Verdict

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


def asked(layout: Layout, probes: dict[str, Any], full: tuple[int, ...], steps: int = 6) -> tuple[Any, Any]:
    config = probed_config(layout, {**TIED, "dropout": 0.1}, probes)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [take(engine, config, mesh, step, full=step in full) for step in range(1, steps + 1)]
    return reports, state(engine)


def asked_and_not(layout: Layout) -> tuple[list[StepReport], list[StepReport], list[str]]:
    (ours, end), (always, _) = asked(layout, RARELY, (2, 3, 5)), asked(layout, {"every_steps": 1}, ())
    plain, plain_end = asked(layout, RARELY, ())
    assert [(r.loss, r.gradient_norm) for r in ours] == [(r.loss, r.gradient_norm) for r in plain]
    return ours, always, differences(end, plain_end)


@pytest.mark.parametrize(
    "layout", [Layout(data=2, zero=2, accumulation=3), Layout(pipeline=2, accumulation=3)], ids=str
)
def test_a_full_look_on_demand_sees_what_one_by_number_sees(layout: Layout) -> None:
    for ours, always, changed in run_distributed(asked_and_not, 2, layout):
        assert changed == []
        for report, full in zip(ours, always, strict=True):
            if report.step not in (2, 3, 5):
                assert set(report.measures) == {
                    n
                    for n in full.measures
                    if n in ("tev_mean", "tev_std", "tev_max", "tev_reach", "tev_shift")
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


MLRA: dict[str, Any] = {"attention": {"kind": "mlra"}}
SIGMA: dict[str, Any] = {"reparametrization": "sigma"}


@pytest.mark.parametrize(
    ("layout", "model", "beta2"),
    [
        *((layout, TIED, 0.95) for layout in [PRECISE[3], HALF[1], ACROSS[2]]),
        *(slow(layout, TIED, 0.95) for layout in [*PRECISE[:3], HALF[0], *HALF[2:], *ACROSS[:2], ACROSS[3]]),
        (Layout(tensor=2, accumulation=3), SIGMA, 0.999),
        (Layout(data=2, zero=2, accumulation=3), SIGMA | {"tied_embeddings": False}, 0.98),
        (Layout(dtype="bf16", tensor=2, zero=1, accumulation=3), MLRA, 0.95),
    ],
    ids=str,
)
def test_rows_never_move_farther_than_adamw_can_move_them(
    layout: Layout, model: dict[str, Any], beta2: float
) -> None:
    every_rank = run_distributed(reached, layout.world_size, layout, model, beta2)
    for ratios in every_rank:
        assert ratios == every_rank[0]
        assert max(ratios) <= 1
        assert max(ratios) > 0.3 / adamw_update_bound(0.9, beta2), "the bound is far from what happens"


def optimizer_config(kind: type[OptimizerConfig] = AdamWConfig, **settings: Any) -> RunConfig:
    config = make_config(Layout())
    optimizer = kind(**{"learning_rate": config.optimizer.learning_rate, **settings})
    return config.model_copy(update={"optimizer": optimizer})


class Unguarded(AdamWConfig):
    """The bound whatever epsilon is."""

    @property
    def update_bound(self) -> float | None:
        return adamw_update_bound(self.beta1, self.beta2)


def watched(config: RunConfig, gradients: list[torch.Tensor], rates: list[float]) -> list[float]:
    """Ratios of a table that torch's AdamW moves by these gradients."""
    settings = config.optimizer
    table = torch.nn.Parameter(
        0.02 * torch.randn(gradients[0].shape, generator=torch.Generator().manual_seed(0))
    )
    betas = (settings.beta1, settings.beta2)
    adamw = torch.optim.AdamW([table], betas=betas, eps=settings.epsilon, weight_decay=0.1, fused=True)
    reach, ratios = RowBound(config), []
    for gradient, rate in zip(gradients, rates, strict=True):
        reach.look(*row_moments(table.detach()))
        ratios += [reach.ratio()] if reach.known else []
        adamw.param_groups[0]["lr"] = rate
        table.grad = gradient
        adamw.step()
        reach.after_update(rate)
    return ratios


@pytest.mark.parametrize("beta2", [0.95, slow(0.98), slow(0.999)])
def test_the_worst_gradients_come_close_to_the_bound_and_not_over_it(beta2: float) -> None:
    """Gradients that grow by b2 / b1 make Cauchy-Schwarz an equality; their signs pull each row apart."""
    config = optimizer_config(beta2=beta2)
    signs = torch.tensor([1.0, -1.0]).repeat(8, 32)
    growing = [signs * 1e-6 * (beta2 / 0.9) ** step for step in range(150)]
    ratios = watched(config, [torch.zeros_like(signs)] * 3000 + growing, [1e-2] * 3075 + [3.0] * 75)
    assert 0.97 < max(ratios) <= 1
    generator = torch.Generator().manual_seed(1)
    wild = [signs * 10 ** (6 * torch.rand((), generator=generator) - 3) for _ in range(300)]
    rates = (10 ** (6 * torch.rand(300, generator=generator) - 5)).tolist()
    assert max(watched(config, wild, rates)) <= 1


def test_gradients_that_underflow_move_nothing_far_unless_epsilon_does_too() -> None:
    """The square of a gradient of 1e-22 is a subnormal of two digits in fp32, that of a smaller one is 0."""
    tiny = [torch.tensor([1.0, -1.0]).repeat(8, 32) * 10 ** (-25 + 0.1 * step) for step in range(100)]
    sound, unsound = optimizer_config(epsilon=1e-15), optimizer_config(epsilon=1e-30)
    assert row_bound_applies(sound)
    assert max(watched(sound, tiny, [1e-2] * 100)) <= 1
    assert not row_bound_applies(unsound)
    assert max(watched(optimizer_config(Unguarded, epsilon=1e-30), tiny, [1e-2] * 100)) > 1


def test_no_bound_no_measure() -> None:
    assert not row_bound_applies(optimizer_config(beta1=0.98, beta2=0.95))
    assert not row_bound_applies(optimizer_config(SGDConfig))
    config = make_config(Layout())
    assert not row_bound_applies(config.model_copy(update={"watchdog": WatchdogConfig(reach=False)}))


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30, 0.05])
def test_a_foreign_write_is_out_of_reach(value: float) -> None:
    reach, table = RowBound(optimizer_config()), 0.02 * torch.ones(4, 32).cumsum(1).sin()
    reach.look(*row_moments(table))
    reach.after_update(1e-4)
    reach.look(*row_moments(table))
    assert reach.ratio() <= 1
    table[2, 5] = value
    reach.look(*row_moments(table))
    assert reach.ratio() > 1


@pytest.mark.parametrize("rate", [1e16, 1e20, 1e30, 1e38])
def test_weights_that_a_learning_rate_throws_beyond_fp32_are_no_fault_of_memory(rate: float) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(8, 32)
    assert max(watched(optimizer_config(), [signs] * 4, [1e-2, rate, rate, 1e-2])) <= 1


def forgotten(folder: str) -> list[set[str]]:
    """Measures that look back: of a step, of one after `reset`, of the next, of one after a load."""
    config = probed_config(Layout(), TIED, {"every_steps": 1})
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [take(engine, config, mesh, 1), take(engine, config, mesh, 2)]
    engine.reset()
    reports += [take(engine, config, mesh, 3), take(engine, config, mesh, 4)]
    engine.complete({})  # as after a load
    reports.append(take(engine, config, mesh, 5))
    return [{"tev_reach", "update_rms"} & set(report.measures) for report in reports]


def measured_with_sgd() -> tuple[set[str], str]:
    """Measures of a second step, and what the plan says."""
    config = optimizer_config(SGDConfig, learning_rate=0.1)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [take(engine, config, mesh, step) for step in (1, 2)]
    return set(reports[1].measures), plan(config, 1).warnings[0]


def test_without_a_bound_tev_is_measured_and_the_plan_says_what_is_not() -> None:
    ((measures, told),) = run_distributed(measured_with_sgd, 1)
    assert {"tev_mean", "tev_std", "tev_max", "tev_shift"} <= measures
    assert "tev_reach" not in measures
    assert told == "updates of sgd have no bound here, so watchdog.reach finds nothing"


def test_nothing_is_compared_with_weights_that_were_replaced(tmp_path: Path) -> None:
    both = {"tev_reach", "update_rms"}
    assert run_distributed(forgotten, 1, str(tmp_path)) == [[set(), both, set(), both, set()]]


# Copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checksum_changes_with_every_bit_and_with_the_order(dtype: torch.dtype) -> None:
    table = (0.02 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    bits = {2: torch.int16, 4: torch.int32}[table.element_size()]
    original = checksum(table)
    assert 0 <= original < 2**52
    patterns = table.view(bits)
    for bit in range(8 * table.element_size() - 1):
        for row in (0, 4):
            patterns[row, 3] ^= 1 << bit
            assert checksum(table) != original
            patterns[row, 3] ^= 1 << bit
    assert checksum(table) == original
    assert checksum(-table) != original
    assert checksum(table.flip(0)) != original
    patterns[0, 0] += 1
    patterns[1, 0] -= 1
    assert checksum(table) != original, "opposite changes in two rows"


def probe_of(tensor: int, pipeline: int, data: int, tied: bool) -> ReplicaProbe:
    axes = {"tensor": tensor, "pipeline": pipeline, "data": data}
    mesh = SimpleNamespace(**{name: SimpleNamespace(size=size) for name, size in axes.items()})
    config = make_config(Layout(), tied_embeddings=tied)
    outline = config.model.outline(config.data)
    model: Any = SimpleNamespace(mesh=mesh, outline=outline)
    model.stage = partial(stage_of, boundaries=outline.partition(pipeline))
    return ReplicaProbe(model)


@pytest.mark.parametrize(
    ("grid", "tied", "copies", "odd"),
    # (table and tensor rank, copy) -> rank = (pipeline * data size + data) * tensor size + tensor
    [
        ((2, 1, 4), True, {(1, 2): 9}, 2 * 2 + 1),
        ((2, 2, 3), True, {(0, 4): 9}, (3 + 1) * 2),
        ((2, 2, 3), False, {(3, 2): 9}, (3 + 2) * 2 + 1),
        ((2, 2, 3), False, {(0, 0): 9, (3, 1): 9}, 0),
        ((1, 1, 4), True, {(0, 0): 9, (0, 2): 9}, None),
        ((1, 1, 3), True, {}, None),
    ],
)
def test_the_odd_one_out_is_named(
    grid: tuple[int, int, int], tied: bool, copies: dict[tuple[int, int], int], odd: int | None
) -> None:
    tensor, pipeline, data = grid
    groups, size = tensor * (1 if tied else 2), data * (pipeline if tied else 1)
    sums = torch.full((groups, size), 5.0, dtype=torch.float64)
    for place, value in copies.items():
        sums[place] = value
    measures = probe_of(*grid, tied).finish(sums.view(-1)).scalars
    assert measures["replicas_differ"] == len({group for group, _ in copies})
    assert measures.get("replicas_odd_rank") == odd


def one_replica_of_three() -> list[StepReport]:
    config = probed_config(Layout(data=3), TIED, {"every_steps": 1})
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [take(engine, config, mesh, 1)]
    if mesh.data.rank == 1:
        with torch.no_grad():
            next(engine.module.parameters())[7, 3] += 1e-7
    return [*reports, take(engine, config, mesh, 2)]


def test_the_last_bit_of_one_replica_is_seen_and_the_rank_named() -> None:
    for before, after in run_distributed(one_replica_of_three, 3):
        assert before.measures["replicas_differ"] == 0
        assert after.measures["replicas_differ"] == 1
        assert after.measures["replicas_odd_rank"] == 1
        assert after.measures["tev_reach"] <= 1, "too little for the reach"


def test_a_rank_is_named_where_its_copy_alone_has_moved_too_far() -> None:
    """Two tensor ranks, three copies of each half of the table, on the last stage."""
    mesh = SimpleNamespace(tensor=SimpleNamespace(size=2))
    probe: Any = SimpleNamespace(_mesh=mesh, _first_rank=6)

    def named(*beyond: int) -> dict[str, float]:
        return EmbeddingProbe._beyond(probe, torch.tensor([place in beyond for place in range(6)]))

    assert named() == named(0, 2, 4) == named(1, 5) == {}
    assert named(3) == {"reach_rank": 9.0}
    assert named(0, 2, 4, 5) == {"reach_rank": 11.0}
