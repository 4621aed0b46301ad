"""Probes in every layout against plain formulas in one process; training with them against training without."""

from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.engine_state import state
from support.gradient_facts import gradient_facts
from support.probed import probed_config
from support.runs import differences
from support.traffic import recorded
from support.training import (
    SEQUENCE,
    VOCABULARY,
    Layout,
    make_batches,
    make_engine,
    make_mesh,
    on_device,
    proceed,
    slow,
)
from torch import Tensor, nn

from pretrain.config.run import ProbesConfig, RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.models.attention import AttentionCore
from pretrain.step import StepReport
from pretrain.tasks.next_token import NextToken

STEPS = 4
PROBES = {"every_steps": 2, "histogram_every_steps": 4, "attention_entropy_rows": "all", "tev_head": True}
TIED: dict[str, Any] = {"positions": "learned"}
UNTIED: dict[str, Any] = {
    "activation": "swiglu",
    "normalization": "rms_norm",
    "bias": False,
    "tied_embeddings": False,
    "attention": {"num_key_value_heads": 2},
}
LOW_RANK: dict[str, Any] = {"attention": {"kind": "mlra"}, "norm_placement": "post"}
SIGMA: dict[str, Any] = {"reparametrization": "sigma", "gamma_init": "one"}

# Twelve samples in micro-batches of two, in all of them.
LAYOUTS = [
    (Layout(tensor=2, accumulation=6, checkpointing=True), TIED),
    (Layout(tensor=4, accumulation=6), {**UNTIED, "attention": {"num_key_value_heads": 4}}),
    (Layout(pipeline=2, accumulation=6, checkpointing=True), UNTIED),
    (Layout(tensor=2, pipeline=2, accumulation=6), TIED),
    (Layout(pipeline=2, data=2, accumulation=3, zero=1), TIED),
    (Layout(data=2, accumulation=3), TIED),
    (Layout(data=2, accumulation=3, zero=2), TIED),
    (Layout(data=2, accumulation=3, zero=3, checkpointing=True), UNTIED),
    slow(Layout(tensor=2, data=2, accumulation=3, zero=3), TIED),
    (Layout(tensor=2, accumulation=6), LOW_RANK),
    (Layout(tensor=2, data=2, accumulation=3, zero=2), SIGMA),
]
BF16 = [
    Layout(dtype="bf16", accumulation=6),
    *(Layout(dtype="bf16", data=2, accumulation=3, zero=stage) for stage in (1, 2, 3)),
    slow(Layout(dtype="bf16", tensor=2, pipeline=2, accumulation=6, zero=1, checkpointing=True)),
]
WITHOUT = {field: False for field, value in ProbesConfig() if value is True}


def take(engine: TrainEngine, config: RunConfig, mesh: Any, step: int) -> StepReport:
    report, _ = engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)
    return report


def train(layout: Layout, model: dict[str, Any], probes: dict[str, Any]) -> list[StepReport]:
    config = probed_config(layout, model, probes)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    return [take(engine, config, mesh, step) for step in range(1, STEPS + 1)]


# One process against plain formulas


def weight_facts(config: RunConfig, module: Any) -> dict[str, float]:
    """TEV and spectral norms of the weights as they are, in float64."""
    tev = module.layers[0].weight[:VOCABULARY].detach().double().std(dim=1, correction=0)
    facts = {
        "tev_mean": tev.mean().item(),
        "tev_std": tev.std(correction=0).item(),
        "tev_p99": tev.quantile(0.99).item(),
        "tev_max": tev.max().item(),
    }
    for number, block in enumerate(module.layers[2 : 2 + config.model.num_layers]):
        query = block.attention.qkv.linear.weight[: config.model.hidden_size]
        matrices = {
            "attention.qkv.linear.0": query,
            "attention.output": block.attention.output.weight,
            "feed_forward.down": block.feed_forward.down.weight,
        }
        for name, matrix in matrices.items():
            norm = torch.linalg.matrix_norm(matrix.detach().double(), 2).item()
            facts[f"sigma/layer_{number:02d}/{name}"] = norm
    return facts


def mean_row(module: Any) -> Tensor:
    mean: Tensor = module.layers[0].weight[:VOCABULARY].detach().double().mean(0)
    return mean


OWNERS = ("embedding", "positions", *(f"layer_{n:02d}" for n in range(4)), "final_norm", "head")


def forward_facts(config: RunConfig, module: Any, batch: Any) -> dict[str, float]:
    """Entropy and RMS of the residual stream on one micro-batch; entropy of a dense softmax in float64."""
    facts: dict[str, float] = {}
    heads = []

    def entropy(core: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        q, k = (x.double() for x in arguments[:2])
        logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / q.shape[-1] ** 0.5
        hidden = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool, device=q.device).triu(1)
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        heads.append(-torch.xlogy(weights, weights).sum(-1)[:, :, 1:].mean(dim=(0, 2)))

    x = batch.inputs[0]
    for index, layer in enumerate(module.layers):
        handles = [
            m.register_forward_pre_hook(entropy) for m in layer.modules() if isinstance(m, AttentionCore)
        ]
        with torch.no_grad():
            x = layer(x)
        for handle in handles:
            handle.remove()
            facts[f"activation_rms/layer_{index - 2:02d}"] = x.double().square().mean().sqrt().item()
    for number, each in enumerate(heads):
        facts[f"attention_entropy_mean/layer_{number:02d}"] = each.mean().item()
        facts[f"attention_entropy_min/layer_{number:02d}"] = each.min().item()
    facts["attention_entropy_mean"] = torch.stack(heads).mean().item()
    facts["attention_entropy_min"] = torch.stack(heads).min().item()
    return facts


def against_plain(model: dict[str, Any]) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """Measures of step 2, the plain formulas, and the slack of the bound at all looks."""
    layout = Layout(accumulation=6)
    config = probed_config(layout, model, PROBES)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    module = engine.module
    before = [p.detach().double().clone() for p in module.parameters()]
    mean_before = mean_row(module)
    take(engine, config, mesh, 1)
    pairs = zip(module.parameters(), before, strict=True)
    changes = torch.cat([(p.detach() - q).view(-1) for p, q in pairs])
    padding = (config.model.padded_vocabulary_size - VOCABULARY) * config.model.hidden_size
    tables = 1 if config.model.tied_embeddings else 2
    facts = {"tev_shift": (mean_row(module) - mean_before).square().mean().sqrt().item()}
    facts |= {"update_rms": (changes.square().sum() / (changes.numel() - tables * padding)).sqrt().item()}
    batches = [on_device(batch, mesh.device) for batch in make_batches(config, mesh, 2)]
    module.eval()
    facts |= weight_facts(config, module) | forward_facts(config, module, batches[0])
    facts |= gradient_facts(OWNERS, module, NextToken(mesh.tensor), batches)
    reports = [take(engine, config, mesh, step) for step in range(2, 9)]
    slack = [r.measures["attention_entropy_slack_min"] for r in reports if r.step % 2 == 0]
    return dict(reports[0].measures), facts, slack


@pytest.mark.parametrize("model", [TIED, UNTIED], ids=["tied", "untied"])
def test_measures_equal_plain_formulas(model: dict[str, Any]) -> None:
    ((measures, facts, slack),) = run_distributed(against_plain, 1, model)
    for name, fact in facts.items():
        assert measures[name] == pytest.approx(fact, rel=1e-5, abs=1e-8), name
    assert min(slack) > -1e-12


# Layouts


@lru_cache
def alone(model: tuple[tuple[str, Any], ...]) -> list[StepReport]:
    (reports,) = run_distributed(train, 1, Layout(accumulation=6), thaw(model), PROBES)
    return reports


def freeze(model: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((k, tuple(v.items()) if isinstance(v, dict) else v) for k, v in sorted(model.items()))


def thaw(model: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return {k: dict(v) if isinstance(v, tuple) else v for k, v in model}


def check(layout: Layout, model: dict[str, Any], bound: float) -> None:
    every_rank = run_distributed(train, layout.world_size, layout, model, PROBES)
    assert all(reports == every_rank[0] for reports in every_rank), "ranks report different numbers"
    for ours, theirs in zip(every_rank[0], alone(freeze(model)), strict=True):
        assert [name for name in ours.measures if name != "replicas_differ"] == list(theirs.measures)
        assert ours.measures.get("replicas_differ", 0) == 0
        for name, value in theirs.measures.items():
            near = 4 * bound if name == "tev_reach" else bound  # which allows for rounding
            assert ours.measures[name] == pytest.approx(value, rel=near, abs=1e-9), name
        assert list(ours.histograms) == list(theirs.histograms)
        for tag, values in theirs.histograms.items():
            assert list(ours.histograms[tag]) == pytest.approx(list(values), rel=bound)


def name_of(value: Any) -> str:
    return str(value) if isinstance(value, Layout) else "-".join(value) or "plain"


@pytest.mark.parametrize(("layout", "model"), LAYOUTS, ids=name_of)
def test_layouts_measure_the_same(layout: Layout, model: dict[str, Any]) -> None:
    check(layout, model, 2e-5)


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16_measures_nearly_the_same(layout: Layout) -> None:
    """Of weights that are rounded to eight bits; gradients of single micro-batches agree least."""
    check(layout, TIED, 5e-2)


def test_padding_of_the_vocabulary_does_not_count() -> None:
    ((*_, padded),) = run_distributed(train, 1, Layout(accumulation=6), {"vocabulary_multiple": 512}, PROBES)
    ((*_, plain),) = run_distributed(train, 1, Layout(accumulation=6), {"vocabulary_multiple": 1}, PROBES)
    for name, value in plain.measures.items():
        assert padded.measures[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    assert len(padded.histograms["embedding/tev"]) == VOCABULARY


# Side effects


def outcome(layout: Layout, probes: dict[str, Any]) -> tuple[list[tuple[float, float]], Any]:
    """Losses and norms of some steps with dropout, then all weights and optimizer states."""
    config = probed_config(layout, {**TIED, "dropout": 0.1, "attention": {"dropout": 0.1}}, probes)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [take(engine, config, mesh, step) for step in range(1, STEPS + 2)]
    return [(report.loss, report.gradient_norm) for report in reports], state(engine)


def with_and_without(layout: Layout) -> tuple[bool, list[str]]:
    (course, end), (plain_course, plain_end) = (outcome(layout, probes) for probes in (PROBES, WITHOUT))
    return course == plain_course, differences(end, plain_end)


UNTOUCHED = [
    Layout(accumulation=3, checkpointing=True),
    Layout(tensor=2, pipeline=2, accumulation=3),
    Layout(data=2, zero=2, accumulation=3),
    Layout(data=2, zero=3, accumulation=3, checkpointing=True),
    Layout(dtype="bf16", accumulation=3),
    Layout(dtype="bf16", data=2, zero=1, accumulation=3),
]


@pytest.mark.parametrize("layout", UNTOUCHED, ids=str)
def test_training_with_probes_is_training_without(layout: Layout) -> None:
    assert run_distributed(with_and_without, layout.world_size, layout) == [(True, [])] * layout.world_size


def count_collectives(layout: Layout, probes: dict[str, Any]) -> list[Counter[str]]:
    """Collectives of each step, by name."""
    config = probed_config(layout, TIED, probes)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    counts = []
    for step in range(1, STEPS + 1):
        with recorded() as calls:
            take(engine, config, mesh, step)
        counts.append(Counter(call.kind for call in calls))
    return counts


@pytest.mark.parametrize(
    ("layout", "extra"),
    [
        (Layout(tensor=2, accumulation=3), {"all_reduce": 1}),  # one power step of all matrices
        (Layout(data=2, zero=2, accumulation=3), {}),
        (Layout(data=2, zero=3, accumulation=3), None),  # weights are gathered
        (Layout(pipeline=2, accumulation=3), None),  # the tied table's gradients meet: one message
    ],
    ids=["tensor", "zero2", "zero3", "pipeline"],
)
def test_an_ordinary_step_has_one_collective_of_the_probes(
    layout: Layout, extra: dict[str, int] | None
) -> None:
    probed = run_distributed(count_collectives, 2, layout, PROBES)
    plain = run_distributed(count_collectives, 2, layout, WITHOUT)
    slots = Counter(all_reduce=1)
    for ours, theirs in zip(probed, plain, strict=True):
        assert sum(theirs[2].values()) > 1, "nothing was counted"
        for step in (0, 2):
            assert ours[step] - theirs[step] == slots
            assert not theirs[step] - ours[step]
        if extra is not None:
            assert ours[3] - theirs[3] == slots + Counter(extra)


def nonfinite(layout: Layout) -> tuple[dict[str, float], bool]:
    """Measures of a look at weights with one NaN in the embedding of a token that does not occur."""
    config = probed_config(layout, {}, {**PROBES, "every_steps": 1})
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    batches = [
        b.__class__(b.tokens_BS % 299, b.targets_BS % 299, b.weights_BS)
        for b in make_batches(config, mesh, 1)
    ]
    with torch.no_grad():
        weight = engine.module.get_submodule("layers.0").weight
        if mesh.tensor.last:
            weight[VOCABULARY - 1 - weight.shape[0] * mesh.tensor.rank] = float("nan")
    report, _ = engine.step(batches, proceed, step=1, learning_rate=0.0)
    return dict(report.measures), report.finite


def test_what_is_not_finite_stays_in_its_slot() -> None:
    for measures, _ in run_distributed(nonfinite, 2, Layout(tensor=2, accumulation=3)):
        assert measures["tev_max"] != measures["tev_max"]
        spoilt = {name for name, value in measures.items() if value != value}
        assert "tev_mean" in spoilt
        assert not any(name.startswith(("attention_entropy", "activation", "sigma")) for name in spoilt)


def hooks(engine: TrainEngine) -> int:
    modules = engine.module.modules()
    forward = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    return forward + sum(len(p._backward_hooks or ()) for p in engine.module.parameters())


def hooks_around_a_look() -> tuple[int, int]:
    config = probed_config(Layout(accumulation=3), TIED, PROBES)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    before = hooks(engine)
    for step in (1, 2):
        take(engine, config, mesh, step)
    return before, hooks(engine)


def test_a_look_leaves_no_hook() -> None:
    ((before, after),) = run_distributed(hooks_around_a_look, 1)
    assert before == after
