"""The model equals the formulas, written plainly in float64; its parameters are those that the plan counts.

B  samples, S  tokens, D  hidden size
"""

from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.plain_formulas import attend, feed_forward, norm, sinusoids
from support.training import Layout, make_batches, make_config, make_mesh
from torch import Tensor
from torch.nn import functional as F

from parallel.pipeline import SequentialLayers
from pretrain.engine.build import model_parts
from pretrain.runtime.kernels import detect_kernels
from pretrain.tasks.gpt.config import GPTConfig

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned"},
    "rotary_untied": {"tied_embeddings": False},
    "llama": {
        "activation": "swiglu",
        "normalization": "rms_norm",
        "bias": False,
        "tied_embeddings": False,
        "attention": {"num_key_value_heads": 2},
    },
    "post": {"norm_placement": "post"},
    "no_norms": {"norm_placement": "none"},
    "deepnorm": {"norm_placement": "deepnorm", "positions": "sinusoidal"},
    "mlra": {"attention": {"kind": "mlra"}},
    "mlra_grouped_post": {
        "normalization": "rms_norm",
        "norm_placement": "post",
        "bias": False,
        "attention": {"kind": "mlra", "rank": 6, "init": "xavier", "num_key_value_heads": 2},
    },
}


def self_attention(model: GPTConfig, weights: dict[str, Tensor], name: str, x_BSD: Tensor) -> Tensor:
    future = torch.ones(x_BSD.shape[1], x_BSD.shape[1], dtype=torch.bool).triu(1)
    return attend(model, weights, name, x_BSD, ~future)


def reference(model: GPTConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits over the real vocabulary."""
    last = model.num_layers + 3
    x = weights["layers.0.weight"][tokens]
    if model.positions == "learned":
        x = x + weights["layers.1.positions_SD"]
    if model.positions == "sinusoidal":
        x = model.hidden_size**0.5 * x + sinusoids(*x.shape[1:])
    for layer in range(2, 2 + model.num_layers):
        name = f"layers.{layer}"
        for branch, part in ((self_attention, "attention"), (feed_forward, "feed_forward")):
            y = norm(model, weights, f"{name}.{part}_norm", x) if model.norm_placement == "pre" else x
            kept = (2 * model.num_layers) ** 0.25 if model.norm_placement == "deepnorm" else 1.0
            x = kept * x + branch(model, weights, f"{name}.{part}", y)
            after = model.norm_placement in ("post", "deepnorm")
            x = norm(model, weights, f"{name}.{part}_norm", x) if after else x
    x = norm(model, weights, f"layers.{last - 1}.norm", x) if model.norm_placement == "pre" else x
    head = weights["layers.0.weight" if model.tied_embeddings else f"layers.{last}.weight"]
    return (x @ head.T)[..., : model.vocabulary_size]


def outcome(name: str) -> tuple[float, float, list[tuple[str, float]]]:
    """Our loss, the reference's, and per parameter the relative difference of the gradients."""
    config = make_config(Layout(), **MODELS[name])
    mesh = make_mesh(config.parallel)
    parts = model_parts(config, mesh, detect_kernels())
    model = SequentialLayers(parts.layers)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    with torch.no_grad():
        for table in model.parameters():
            if table.shape[0] == config.model.padded_vocabulary_size:
                table[config.model.vocabulary_size :] = 0
    (batch,) = make_batches(config, mesh, 1)
    loss = parts.objective(model(*batch.inputs), batch.labels)
    loss.backward()
    weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    logits = reference(config.model, weights, batch.tokens_BS)
    nll = F.cross_entropy(logits.transpose(1, 2), batch.targets_BS, reduction="none")
    expected = (nll * batch.weights_BS).sum()
    expected.backward()
    differences = []
    for n, p in model.named_parameters():
        ours, theirs = p.grad, weights[n].grad
        assert ours is not None
        assert theirs is not None
        differences.append((n, ((ours - theirs).norm() / theirs.norm()).item()))
    return loss.item(), expected.item(), differences


@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_float64(name: str) -> None:
    ((ours, theirs, gradients),) = run_distributed(outcome, 1, name)
    assert ours == pytest.approx(theirs, rel=1e-6)
    # The softmax does not see a constant added to all keys, so without rotation the key bias has no gradient.
    assert max(difference for parameter, difference in gradients) < 1e-5, gradients


def shapes(name: str) -> list[tuple[int, ...]]:
    config = make_config(Layout(), **MODELS[name])
    parts = model_parts(config, make_mesh(config.parallel), detect_kernels())
    return [tuple(parameter.shape) for parameter in SequentialLayers(parts.layers).parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_plan(name: str) -> None:
    (built,) = run_distributed(shapes, 1, name)
    config = make_config(Layout(), **MODELS[name])
    layers = config.model.outline(config.data).layers
    planned = [parameter for layer in layers for parameter in layer.parameters]
    assert sorted(built) == sorted(shape.shape for shape in planned)


def initial_moments(depth: int, **model: Any) -> list[tuple[str, float]]:
    config = make_config(Layout(), num_layers=depth, hidden_size=128, **model)
    parts = model_parts(config, make_mesh(config.parallel), detect_kernels())
    model = SequentialLayers(parts.layers)
    return [
        (n, p.std().item()) for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("layers.2.")
    ]


def test_initial_weights_are_those_of_gpt2() -> None:
    (moments,) = run_distributed(initial_moments, 1, 8)
    for name, std in moments:
        residual = name.endswith(("output.weight", "down.weight"))
        assert std == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.03), name


def moments_of_deepnorm() -> list[tuple[str, float]]:
    mlra = {"kind": "mlra", "rank": 64, "init": "variance_matched"}
    return initial_moments(8, norm_placement="deepnorm", attention=mlra)


def test_initial_weights_of_deepnorm_with_low_rank_attention() -> None:
    """Xavier's rule, times beta = (8 N)^(-1/4) for values, attention output and feed-forward; the product of two
    factors has the variance of such a matrix."""
    (moments,) = run_distributed(moments_of_deepnorm, 1)
    found = {name.removeprefix("layers.2.").removesuffix(".weight"): std for name, std in moments}
    beta, square, wide = 64**-0.25, (2 / 256) ** 0.5, (2 / (128 + 512)) ** 0.5
    for name, expected in {
        "attention.output": beta * square,
        "feed_forward.up": beta * wide,
        "feed_forward.down": beta * wide,
        "attention.qkv.down": 0.02,
        "attention.qkv.up.0": square / (0.02 * 8),
        "attention.qkv.up.1": square / (0.02 * 8),
        "attention.qkv.up.2": beta * square / (0.02 * 8),
    }.items():
        assert found.pop(name) == pytest.approx(expected, rel=0.03), name
    assert not found
