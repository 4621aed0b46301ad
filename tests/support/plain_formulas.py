"""The layers of a Transformer are written plainly here, for float64.

B  samples, S  tokens, T  tokens of one sequence that asks another of S, D  hidden size, H  heads, K  head size
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.models.config import BlockConfig

EPSILON = 1e-5


def norm(model: BlockConfig, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
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


def project(
    model: BlockConfig, weights: dict[str, Tensor], name: str, x_BSD: Tensor, rows: Sequence[int]
) -> Sequence[Tensor]:
    """Queries, keys and values of all heads, or some of them."""
    if model.attention.kind == "mlra":
        latents = linear(weights, f"{name}.down", x_BSD).split(model.attention_rank, dim=-1)
        return [linear(weights, f"{name}.up.{i}", latent) for i, latent in enumerate(latents)]
    return linear(weights, f"{name}.linear", x_BSD).split(list(rows), dim=-1)


def attend(
    model: BlockConfig,
    weights: dict[str, Tensor],
    name: str,
    x_BTD: Tensor,
    seen: Tensor,
    states_BSD: Tensor | None = None,
) -> Tensor:
    """Attention of a sequence to itself, or to states; `seen` tells which keys each query sees."""
    size, heads, groups = model.head_size, model.attention.num_heads, model.num_key_value_heads
    Q, K = heads * size, groups * size
    if states_BSD is None:
        projected = project(model, weights, f"{name}.qkv", x_BTD, (Q, K, K))
    else:
        projected = [
            *project(model, weights, f"{name}.query", x_BTD, (Q,)),
            *project(model, weights, f"{name}.key_value", states_BSD, (K, K)),
        ]
    q, k, v = (t.unflatten(-1, (-1, size)).transpose(1, 2) for t in projected)
    if model.positions == "rotary" and states_BSD is None:
        q, k = rotate(q), rotate(k)
    k, v = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / size**0.5
    y = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
    return linear(weights, f"{name}.output", y.transpose(1, 2).flatten(2))


def feed_forward(model: BlockConfig, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = linear(weights, f"{name}.up", x)
    if model.activation == "swiglu":
        gate, value = h.chunk(2, dim=-1)
        return linear(weights, f"{name}.down", gate * gate.sigmoid() * value)
    return linear(weights, f"{name}.down", 0.5 * h * (1 + torch.erf(h / 2**0.5)))


def sinusoids(length: int, size: int) -> Tensor:
    """Positions by the formulas of Vaswani et al. 2017, 3.5, entry by entry: (S, D)."""
    table = torch.zeros(length, size, dtype=torch.float64)
    for position in range(length):
        for pair in range(size // 2):
            angle = position / 10_000.0 ** (2 * pair / size)
            table[position, 2 * pair], table[position, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table
