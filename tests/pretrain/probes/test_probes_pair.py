"""Probes of an encoder-decoder: several tables and kinds of attention, masks, inputs that are two sequences.

B  samples, H  heads, T  queries, S  keys, K  head size
"""

from functools import lru_cache
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.gradient_facts import gradient_facts
from support.pair_model import SOURCE, TARGET, pair_batches, pair_config, pair_engine
from support.training import Layout, make_mesh, on_device, proceed
from torch import Tensor, nn

from pretrain.config.run import RunConfig
from pretrain.models.attention import AttentionCore
from pretrain.step import StepReport
from pretrain.tasks.next_token import NextToken

STEPS = 4
PROBES = {"every_steps": 2, "histogram_every_steps": 4, "attention_entropy_rows": "all", "tev_head": True}
TIED: dict[str, Any] = {}
UNTIED: dict[str, Any] = {"tied_embeddings": False, "attention": {"num_key_value_heads": 2}}
DEEP: dict[str, Any] = {"encoder_layers": 1, "num_layers": 3}
"""Two stages are cut within the decoder: both what the encoder and what a decoder's block returns cross the cut."""
SHALLOW: dict[str, Any] = {"encoder_layers": 3, "num_layers": 1}
"""The target's embedding and the head, which are tied, lie on the second stage both."""
JOINT: dict[str, Any] = {"joint": True}
"""Both embeddings lie on the first stage, the head on the second, and all three are one table."""
MODELS = {"tied": TIED, "untied": UNTIED, "deep": DEEP, "shallow": SHALLOW, "joint": JOINT}

# Twelve samples in micro-batches of two, in all of them.
LAYOUTS = [
    (Layout(tensor=2, accumulation=6, checkpointing=True), "untied"),
    (Layout(pipeline=2, accumulation=6), "tied"),
    (Layout(data=2, accumulation=3, zero=2), "tied"),
    (Layout(tensor=2, pipeline=2, accumulation=6), "tied"),
    (Layout(pipeline=2, accumulation=6), "deep"),
    (Layout(pipeline=2, accumulation=6), "shallow"),
    (Layout(tensor=2, pipeline=2, accumulation=6), "joint"),
    (Layout(pipeline=2, data=2, accumulation=3, zero=1, checkpointing=True), "untied"),
]


def take(engine: Any, config: RunConfig, mesh: Any, step: int) -> StepReport:
    report, _ = engine.step(pair_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)
    return report


def train(layout: Layout, model: dict[str, Any]) -> list[StepReport]:
    config = pair_config(layout, model, PROBES)
    mesh = make_mesh(config.parallel)
    engine = pair_engine(config, mesh)
    return [take(engine, config, mesh, step) for step in range(1, STEPS + 1)]


# One process against plain formulas


def table_facts(config: RunConfig, module: Any) -> dict[str, float]:
    """TEV of every table, in float64."""
    tables = {"tev": (0, SOURCE), "tev_target": (3, TARGET)}
    if not config.model.tied_embeddings:
        tables["tev_head"] = (7, TARGET)
    facts = {}
    for name, (layer, rows) in tables.items():
        tev = module.layers[layer].weight[:rows].detach().double().std(dim=1, correction=0)
        facts |= {f"{name}_mean": tev.mean().item(), f"{name}_std": tev.std(correction=0).item()}
        facts |= {f"{name}_p99": tev.quantile(0.99).item(), f"{name}_max": tev.max().item()}
    return facts


def spectral_facts(config: RunConfig, module: Any) -> dict[str, float]:
    size = config.model.hidden_size
    keys = config.model.num_key_value_heads * config.model.head_size
    decoder = module.layers[4]
    matrices = {
        "encoder_01/attention.qkv.linear.0": module.layers[2].attention.qkv.linear.weight[:size],
        "decoder_00/cross_attention.query.linear": decoder.cross_attention.query.linear.weight,
        "decoder_00/cross_attention.key_value.linear.1": decoder.cross_attention.key_value.linear.weight[
            keys:
        ],
        "decoder_00/cross_attention.output": decoder.cross_attention.output.weight,
        "decoder_00/feed_forward.down": decoder.feed_forward.down.weight,
    }
    return {
        f"sigma/{name}": torch.linalg.matrix_norm(matrix.detach().double(), 2).item()
        for name, matrix in matrices.items()
    }


def dense_entropy(core: AttentionCore, q: Tensor, k: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Mean of the rows of real queries with two visible keys or more, by head, (H,)."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = q @ k.mT / q.shape[-1] ** 0.5
    seen = keys[:, None, :] & queries[:, :, None]
    if core.causal:
        seen = seen & torch.ones_like(seen[0]).tril()
    weights = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    entropy = -torch.xlogy(weights, weights).sum(-1)
    return torch.stack([head[seen.sum(-1) >= 2].mean() for head in entropy.unbind(1)])


def forward_facts(module: Any, batch: Any) -> dict[str, float]:
    """Entropy of each attention and RMS of the stream behind each block, on one micro-batch."""
    facts: dict[str, float] = {}
    found: dict[str, Tensor] = {}
    places = {1: "encoder_00", 2: "encoder_01", 4: "decoder_00", 5: "decoder_01"}
    x: Any = batch.inputs
    for index, layer in enumerate(module.layers):
        handles = []
        for name, core in layer.named_modules():
            if isinstance(core, AttentionCore):
                kind = "/cross" if name.startswith("cross") else ""

                def look(
                    core: nn.Module, arguments: tuple[Any, ...], name: str = places[index] + kind
                ) -> None:
                    q, k, _, _, keys, queries = arguments
                    found[name] = dense_entropy(core, q, k, keys, queries)  # type: ignore[arg-type]

                handles.append(core.register_forward_pre_hook(look))
        with torch.no_grad():
            x = layer(x)
        for handle in handles:
            handle.remove()
        if index in places:
            facts[f"activation_rms/{places[index]}"] = x[0].double().square().mean().sqrt().item()
    for name, each in found.items():
        facts[f"attention_entropy_mean/{name}"] = each.mean().item()
        facts[f"attention_entropy_min/{name}"] = each.min().item()
    facts["attention_entropy_mean"] = torch.stack([each.mean() for each in found.values()]).mean().item()
    facts["attention_entropy_min"] = min(each.min().item() for each in found.values())
    assert len(found) == 6
    return facts


def against_plain(model: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Measures of step 2, and the plain formulas."""
    config = pair_config(Layout(accumulation=6), model, PROBES)
    mesh = make_mesh(config.parallel)
    engine = pair_engine(config, mesh)
    module = engine.module
    before = [p.detach().double().clone() for p in module.parameters()]
    means = [
        module.layers[layer].weight[:rows].double().mean(0) for layer, rows in ((0, SOURCE), (3, TARGET))
    ]
    take(engine, config, mesh, 1)
    changes = torch.cat([(p - q).detach().view(-1) for p, q in zip(module.parameters(), before, strict=True)])
    real = sum(p.numel() for p in before) - (128 - SOURCE) * 32 - (128 - TARGET) * 32
    real -= 0 if config.model.tied_embeddings else (128 - TARGET) * 32
    facts = {"update_rms": (changes.square().sum() / real).sqrt().item()}
    for name, layer, rows, mean in (("tev", 0, SOURCE, means[0]), ("tev_target", 3, TARGET, means[1])):
        now = module.layers[layer].weight[:rows].detach().double().mean(0)
        facts[f"{name}_shift"] = (now - mean).square().mean().sqrt().item()
    batches = [on_device(batch, mesh.device) for batch in pair_batches(config, mesh, 2)]
    module.eval()
    facts |= table_facts(config, module) | spectral_facts(config, module) | forward_facts(module, batches[0])
    outline = config.model.outline(config.data)
    facts |= gradient_facts(outline.names, module, NextToken(mesh.tensor), batches)
    measures = dict(take(engine, config, mesh, 2).measures)
    return measures, facts


@pytest.mark.parametrize("model", [TIED, UNTIED], ids=["tied", "untied"])
def test_measures_equal_plain_formulas(model: dict[str, Any]) -> None:
    ((measures, facts),) = run_distributed(against_plain, 1, model)
    for name, fact in facts.items():
        assert measures[name] == pytest.approx(fact, rel=1e-5, abs=1e-8), name
    assert measures["attention_entropy_slack_min"] > -1e-12
    reach = {"tev_reach", "tev_target_reach"} | ({"tev_head_reach"} if model else set())
    assert {name for name in measures if name.endswith("_reach")} == reach
    assert {name for name in measures if name.endswith("_shift")} == {"tev_shift", "tev_target_shift"}


# Layouts


@lru_cache
def alone(model: str) -> list[StepReport]:
    (reports,) = run_distributed(train, 1, Layout(accumulation=6), MODELS[model])
    return reports


@pytest.mark.parametrize(("layout", "model"), LAYOUTS, ids=str)
def test_layouts_measure_the_same(layout: Layout, model: str) -> None:
    every_rank = run_distributed(train, layout.world_size, layout, MODELS[model])
    assert all(reports == every_rank[0] for reports in every_rank), "ranks report different numbers"
    for ours, theirs in zip(every_rank[0], alone(model), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert [name for name in ours.measures if name != "replicas_differ"] == list(theirs.measures)
        if ours.step % 2 == 0:
            copies = layout.data > 1 or (layout.pipeline > 1 and model not in ("untied", "shallow"))
            assert ("replicas_differ" in ours.measures) == copies
        assert ours.measures.get("replicas_differ", 0) == 0
        for name, value in theirs.measures.items():
            near = 2e-4 if name.endswith("reach") else 5e-5  # which allows for rounding
            assert ours.measures[name] == pytest.approx(value, rel=near, abs=1e-9), name
        for tag, values in theirs.histograms.items():
            assert list(ours.histograms[tag]) == pytest.approx(list(values), rel=2e-5)


def one_copy_is_off(layout: Layout, layer: int) -> list[StepReport]:
    config = pair_config(layout, TIED, {"every_steps": 1})
    mesh = make_mesh(config.parallel)
    engine = pair_engine(config, mesh)
    reports = [take(engine, config, mesh, 1)]
    copy = engine._model.local.get(layer)
    if copy is not None and mesh.data.rank == 1:
        with torch.no_grad():
            copy.weight[7, 3] += 1e-7  # type: ignore[index, operator, union-attr]
    return [*reports, take(engine, config, mesh, 2)]


@pytest.mark.parametrize(("layer", "odd"), [(0, None), (3, 1), (7, 3)], ids=["source", "target", "head"])
def test_a_copy_that_differs_is_found_among_groups_of_two_and_of_four(layer: int, odd: int | None) -> None:
    """The source's table lies on two ranks, the target's with the head on four."""
    layout = Layout(pipeline=2, data=2, accumulation=3)
    for before, after in run_distributed(one_copy_is_off, 4, layout, layer):
        assert before.measures["replicas_differ"] == 0
        assert after.measures["replicas_differ"] == 1
        assert after.measures.get("replicas_odd_rank") == odd


def without_any_row() -> tuple[set[str], set[str]]:
    """Names of entropies where the first micro-batch has no token of the source, and where it has no token at all."""
    config = pair_config(Layout(accumulation=6), TIED, {"every_steps": 1})
    mesh = make_mesh(config.parallel)
    engine = pair_engine(config, mesh)
    found = []
    for step in (1, 2):
        batches = pair_batches(config, mesh, step)
        batches[0].source_BS.zero_()
        if step == 2:
            batches[0].target_BT.zero_()
        report, _ = engine.step(batches, proceed, step=step, learning_rate=1e-3)
        assert report.finite
        assert all(value == value for value in report.measures.values())
        found.append({name for name in report.measures if name.startswith("attention_entropy_min")})
    return found[0], found[1]


def test_an_attention_of_which_no_row_counts_is_not_reported() -> None:
    ((without_source, without_all),) = run_distributed(without_any_row, 1)
    names = {f"attention_entropy_min/decoder_{number}" for number in ("00", "01")}
    assert without_source == names | {"attention_entropy_min"}
    assert without_all == set()
