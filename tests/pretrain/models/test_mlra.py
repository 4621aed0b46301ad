"""Low-rank attention and the placement of norms in whole models: layouts agree, folding is exact, initial variances.

B  samples, S  tokens, D  hidden size
"""

from functools import lru_cache
from typing import Any

import pytest
import torch
from support.courses import Losses, largest_difference, train
from support.distributed import run_distributed
from support.training import Layout, make_batches, make_config, make_mesh
from torch import Tensor

from parallel.mesh import ParallelMesh
from parallel.pipeline import SequentialLayers
from parallel.rng import RandomStreams
from pretrain.engine.build import model_parts
from pretrain.models.attention import dense_attention_state, low_rank_factors
from pretrain.models.config import TransformerConfig
from pretrain.models.context import LayerContext, Materials
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels

MLRA = {"kind": "mlra", "init": "variance_matched"}
MODELS: dict[str, dict[str, Any]] = {
    "replicated": {"attention": MLRA},
    "sharded": {"attention": {**MLRA, "down_projection": "sharded"}},
    "grouped": {"attention": {**MLRA, "rank": 12, "num_key_value_heads": 2, "down_projection": "sharded"}},
    "post": {"norm_placement": "post"},
    "none": {"norm_placement": "none"},
    "sigma_replicated": {"attention": MLRA, "reparametrization": "sigma"},
    "sigma_sharded": {"attention": {**MLRA, "down_projection": "sharded"}, "reparametrization": "sigma"},
}
STEPS = 6
CASES = [
    *((name, Layout(tensor=2, checkpointing=True)) for name in MODELS),
    *((name, Layout(tensor=4)) for name in ("replicated", "sharded")),
    ("replicated", Layout(tensor=2, pipeline=2, accumulation=3)),
    ("post", Layout(tensor=2, pipeline=2)),
    ("none", Layout(pipeline=2, data=2, zero=1)),
    ("sharded", Layout(tensor=2, data=2, zero=2)),
    ("grouped", Layout(tensor=2, data=2, zero=3)),
]


@lru_cache
def alone(name: str, dropout: float = 0.0) -> Losses:
    (course,) = run_distributed(train, 1, Layout(), {**MODELS[name], "dropout": dropout}, STEPS)
    return course


@pytest.mark.parametrize(("name", "layout"), CASES, ids=str)
def test_layouts_agree(name: str, layout: Layout) -> None:
    courses = run_distributed(train, layout.world_size, layout, MODELS[name], STEPS)
    assert all(course == courses[0] for course in courses), "ranks report different numbers"
    assert largest_difference(courses[0], alone(name), 0) <= 1e-5
    assert largest_difference(courses[0], alone(name), 1) <= 1e-5


@pytest.mark.parametrize("name", ["replicated", "sharded"])
def test_bf16_agrees(name: str) -> None:
    layout = Layout(dtype="bf16", tensor=2, zero=1, checkpointing=True)
    course = run_distributed(train, layout.world_size, layout, MODELS[name], STEPS)[0]
    assert largest_difference(course, alone(name), 0) <= 2e-3
    assert largest_difference(course, alone(name), 1) <= 3e-2


def test_down_projections_agree_without_tensor_parallelism() -> None:
    assert alone("replicated") == alone("sharded")


@pytest.mark.parametrize("name", ["replicated", "post"])
def test_dropout_is_that_of_one_process(name: str) -> None:
    model = {**MODELS[name], "dropout": 0.2}
    course = run_distributed(train, 2, Layout(tensor=2, checkpointing=True), model, STEPS)[0]
    assert largest_difference(course, alone(name, 0.2), 0) <= 1e-5


# Folding


def logits(layout: Layout, model: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of a model, and of the dense one with its folded weights."""
    config = make_config(layout, **model)
    mesh = make_mesh(config.parallel)
    low_rank = SequentialLayers(model_parts(config, mesh, detect_kernels()).layers)
    for parameter in low_rank.parameters():
        generator = torch.Generator().manual_seed(parameter.shape[0])
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    groups = {"num_key_value_heads": config.model.num_key_value_heads}
    config = make_config(layout, **{**model, "attention": groups})
    dense = SequentialLayers(model_parts(config, mesh, detect_kernels()).layers)
    dense.load_state_dict(dense_attention_state(low_rank), strict=True)
    (batch,) = make_batches(config, mesh, 1)
    with torch.no_grad():
        return low_rank(*batch.inputs), dense(*batch.inputs)


@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2)], ids=str)
@pytest.mark.parametrize("name", ["replicated", "grouped"])
def test_folded_model_computes_the_same(name: str, layout: Layout) -> None:
    for unfolded, folded in run_distributed(logits, layout.world_size, layout, MODELS[name]):
        torch.testing.assert_close(folded, unfolded, rtol=1e-5, atol=1e-5)


# Initial variances, relative to a dense matrix of the same rule: notes of docs/architecture.md


def variance_ratio(mesh: ParallelMesh, init: str, hidden: int, rank: int) -> float:
    """Var[(U D)_ij] over that of a dense (hidden, hidden) matrix."""
    model = TransformerConfig.model_validate(
        {
            "num_layers": 1,
            "hidden_size": hidden,
            "attention": {"kind": "mlra", "num_heads": 1, "rank": rank, "init": init},
        }
    )
    context = LayerContext(model, Materials(mesh, RandomStreams(1, mesh), detect_kernels(), seed=1))
    factors = low_rank_factors(context, "query", hidden)
    down, up = factors.down.rows(0, rank, rank, hidden), factors.up.rows(0, hidden, hidden, rank)
    dense = 1 / hidden if init == "xavier" else 0.02**2  # 2 / (fan in + fan out)
    return (up @ down).var().item() / dense


def measured_ratios(cases: list[tuple[str, int]]) -> list[float]:
    mesh = make_mesh(make_config(Layout()).parallel)
    return [variance_ratio(mesh, init, 768, rank) for init, rank in cases]


def test_initial_variances() -> None:
    expected = {
        ("gpt2", 384): 384 * 4e-4,
        ("gpt2", 192): 192 * 4e-4,
        ("xavier", 384): 8 / 9,
        ("xavier", 192): 0.64,
        ("xavier", 64): 1 - ((768 - 64) / (768 + 64)) ** 2,
        ("variance_matched", 384): 1.0,
        ("variance_matched", 64): 1.0,
    }
    (measured,) = run_distributed(measured_ratios, 1, list(expected))
    assert measured == pytest.approx(list(expected.values()), rel=0.02)


# Counts


def test_at_half_the_hidden_size_parameters_and_products_are_those_of_dense_attention() -> None:
    dense = plan(make_config(Layout()), 1)
    for down_projection in ("replicated", "sharded"):
        low_rank = plan(make_config(Layout(), attention={**MLRA, "down_projection": down_projection}), 1)
        assert low_rank.parameters == dense.parameters
        assert low_rank.flops_per_token == dense.flops_per_token
        assert low_rank.memory.activations > dense.memory.activations


def test_a_smaller_rank_saves_what_it_should() -> None:
    """Each of 4 blocks: q, k, v of 32 x 32 become 5 x 32 and 32 x 5; biases stay."""
    dense, low_rank = (
        plan(make_config(Layout()), 1),
        plan(make_config(Layout(), attention={**MLRA, "rank": 5}), 1),
    )
    saved = 4 * 3 * (32 * 32 - 2 * 5 * 32)
    assert dense.parameters.parts["attention"] - low_rank.parameters.parts["attention"] == saved
    assert dense.flops_per_token - low_rank.flops_per_token == 6 * saved


def test_sharded_down_projections_are_divided_and_replicated_ones_not() -> None:
    held = {}
    for down_projection in ("replicated", "sharded"):
        config = make_config(Layout(tensor=2), attention={**MLRA, "down_projection": down_projection})
        held[down_projection] = plan(config, 2).stages[0].parameters
    assert held["replicated"] - held["sharded"] == 4 * 3 * 16 * 32 // 2


def test_parameters_by_placement_of_norms() -> None:
    """Gain and bias: 4 blocks with 2 norms each, and a last one for pre-LN."""
    counts = {
        p: plan(make_config(Layout(), norm_placement=p), 1).parameters.parts["norms"]
        for p in ("pre", "post", "none")
    }
    assert counts == {"pre": 9 * 2 * 32, "post": 8 * 2 * 32, "none": 0}
