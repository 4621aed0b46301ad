"""The model equals the formulas, written plainly in float64; its parameters are those that the plan counts.

B  samples, S  tokens, D  hidden size, H  heads, K  head size
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
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
    "mlra": {"attention": {"kind": "mlra"}},
    "mlra_grouped_post": {
        "normalization": "rms_norm",
        "norm_placement": "post",
        "bias": False,
        "attention": {"kind": "mlra", "rank": 6, "init": "xavier", "num_key_value_heads": 2},
    },
}
EPSILON = 1e-5


def norm(model: GPTConfig, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if model.normalization == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weights[f"{name}.weight"]
    return x + weights[f"{name}.bias"] if f"{name}.bias" in weights else x


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def rotate(x_BHSK: Tensor) -> Tensor:
    """Complex multiplication by exp(i * position * 10000^(-2j/K)) on the pairs (j, j + K/2)."""
    _, _, length, size = x_BHSK.shape
    angles = torch.arange(length).double()[:, None] * 10_000.0 ** (-torch.arange(0, size, 2).double() / size)
    turns = torch.polar(torch.ones(1).double(), angles)
    pairs = torch.complex(x_BHSK[..., : size // 2], x_BHSK[..., size // 2 :]) * turns
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def project(model: GPTConfig, weights: dict[str, Tensor], name: str, x_BSD: Tensor) -> Sequence[Tensor]:
    """Queries, keys and values of all heads."""
    if model.attention.kind == "mlra":
        latents = linear(weights, f"{name}.down", x_BSD).split(model.attention_rank, dim=-1)
        return [linear(weights, f"{name}.up.{i}", latent) for i, latent in enumerate(latents)]
    size, heads, groups = model.head_size, model.attention.num_heads, model.num_key_value_heads
    return linear(weights, f"{name}.linear", x_BSD).split(
        [heads * size, groups * size, groups * size], dim=-1
    )


def attention(model: GPTConfig, weights: dict[str, Tensor], name: str, x_BSD: Tensor) -> Tensor:
    size, heads, groups = model.head_size, model.attention.num_heads, model.num_key_value_heads
    projected = project(model, weights, f"{name}.qkv", x_BSD)
    q, k, v = (t.unflatten(-1, (-1, size)).transpose(1, 2) for t in projected)
    if model.positions == "rotary":
        q, k = rotate(q), rotate(k)
    k, v = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / size**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    y = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    return linear(weights, f"{name}.output", y.transpose(1, 2).flatten(2))


def feed_forward(model: GPTConfig, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = linear(weights, f"{name}.up", x)
    if model.activation == "swiglu":
        gate, value = h.chunk(2, dim=-1)
        return linear(weights, f"{name}.down", gate * gate.sigmoid() * value)
    return linear(weights, f"{name}.down", 0.5 * h * (1 + torch.erf(h / 2**0.5)))


def reference(model: GPTConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits over the real vocabulary."""
    last = model.num_layers + 3
    x = weights["layers.0.weight"][tokens]
    if model.positions == "learned":
        x = x + weights["layers.1.positions_SD"]
    for layer in range(2, 2 + model.num_layers):
        name = f"layers.{layer}"
        for branch, part in ((attention, "attention"), (feed_forward, "feed_forward")):
            y = norm(model, weights, f"{name}.{part}_norm", x) if model.norm_placement == "pre" else x
            x = x + branch(model, weights, f"{name}.{part}", y)
            x = norm(model, weights, f"{name}.{part}_norm", x) if model.norm_placement == "post" else x
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


def initial_moments(depth: int) -> list[tuple[str, float]]:
    config = make_config(Layout(), num_layers=depth, hidden_size=128)
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
