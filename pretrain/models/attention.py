"""Attention has dense or low-rank projections; a sequence's attention to itself is causal or not.

B  samples in a micro-batch, S  tokens in a sequence, T  queries and S keys where they differ, D  hidden size
H  query heads (local), G  key and value heads (local), K  head size
"local" is this tensor rank's share; everything else is complete on every rank.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.low_rank import Factors, LowRankLinear
from parallel.rng import MaskSeed, SeedInput, seed_attention
from pretrain.models.cache import KeyValueCache
from pretrain.models.config import TransformerConfig
from pretrain.models.context import LayerContext

RotaryTable = tuple[Tensor, Tensor]
"""Cosine and sine of the angles of positions; see `rotary_table`."""


class BlockPass(NamedTuple):
    """A block is given this on its way over a micro-batch, beside the tensors that flow."""

    draw: MaskSeed | SeedInput | None = None
    """It seeds dropout; none leaves it out."""
    rotary: RotaryTable | None = None
    """What queries and keys of self-attention are rotated by, if they are."""

    def dropout(self, x: Tensor, probability: float, site: str) -> Tensor:
        """It applies dropout to a tensor that every tensor rank holds whole."""
        return self.draw.dropout(x, probability, site) if self.draw and probability else x

    def as_inputs(self) -> "BlockPass":
        """It returns the same for a compiled graph."""
        return BlockPass(self.draw.as_input() if isinstance(self.draw, MaskSeed) else self.draw, self.rotary)


def projected_rows(config: TransformerConfig) -> dict[str, int]:
    """It returns the number of output features of each projection, over all heads."""
    queries, keys = config.attention.num_heads, config.num_key_value_heads
    heads = {"query": queries, "key": keys, "value": keys}
    return {name: count * config.head_size for name, count in heads.items()}


QUERY_KEY_VALUE = ("query", "key", "value")
"""What a projection of self-attention computes."""
ASKING = ("query", "key")
"""Of these, what attention weights are made of."""


class DenseProjection(nn.Module):
    """One product computes queries, keys, values or some of them: (B, S, D) -> parts x (B, S, local heads * K)."""

    def __init__(self, context: LayerContext, name: str, parts: Sequence[str] = QUERY_KEY_VALUE) -> None:
        super().__init__()
        config = context.config
        rows, hidden = projected_rows(config), config.hidden_size
        self.linear = ColumnParallelLinear(
            hidden,
            [
                (rows[part], context.matrix(f"{name}.{part}", (rows[part], hidden), asks=part in ASKING))
                for part in parts
            ],
            bias=config.bias,
            tensor=context.mesh.tensor,
            spectral=context.spectral,
        )

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, ...]:
        return self.linear(x_BSD).split(self.linear.local_blocks, dim=-1)

    def first(self) -> tuple[ColumnParallelLinear, int]:
        """It returns the layer that its first part comes out of, and how many of the layer's local rows make it."""
        return self.linear, self.linear.local_blocks[0]


class LowRankProjection(LowRankLinear):
    """Multi-head Low-Rank Attention (Chung et al. 2024, arXiv 2409.07787) has factors in place of dense matrices.

    q = U_q D_q x, k = U_k D_k x, v = U_v D_v x. Each D: hidden size -> rank serves all heads; each U is cut by heads.
    There is no norm, nonlinearity or bias between them.
    """

    def __init__(self, context: LayerContext, name: str, parts: Sequence[str] = QUERY_KEY_VALUE) -> None:
        config = context.config
        rows = projected_rows(config)
        super().__init__(
            config.hidden_size,
            config.attention_rank,
            [low_rank_factors(context, f"{name}.{part}", rows[part], asks=part in ASKING) for part in parts],
            bias=config.bias,
            down_projection=config.attention.down_projection,
            tensor=context.mesh.tensor,
            spectral=context.spectral,
        )

    def first(self) -> tuple[ColumnParallelLinear, int]:
        """It returns the layer that its first part comes out of, and how many of the layer's local rows make it."""
        up = self.up[0]
        assert isinstance(up, ColumnParallelLinear)
        return up, up.local_blocks[0]

    def dense_state(self) -> dict[str, Tensor]:
        """It returns the state of the DenseProjection that computes the same; all tensor ranks must ask for it."""
        weights, biases = zip(*self.fold(), strict=True)
        state = {"linear.weight": torch.cat(weights)}
        return state if biases[0] is None else state | {"linear.bias": torch.cat(biases)}


def low_rank_factors(context: LayerContext, name: str, rows: int, *, asks: bool = False) -> Factors:
    """It returns the factors U (rows, r) D (r, d) of a projection with their initial weights."""
    down, up = factor_stds(context, rows, asks=asks)
    return Factors(rows, context.normal(f"{name}.down", down), context.normal(f"{name}.up", up))


def factor_stds(context: LayerContext, rows: int, *, asks: bool) -> tuple[float, float]:
    """It returns the standard deviations of the initial D (r, d) and U (rows, r).

    An entry of U D has variance r s_U^2 s_D^2. Relative to a dense matrix of the same rule, d = rows, that is r s^2
    for `gpt2` (0.15 at r = 384), 4 r d / (d + r)^2 for `xavier` (8/9 at r = d/2), and 1 for `variance_matched`.
    DeepNorm has a gain for values: then U is multiplied by it.
    """
    config = context.config
    hidden, rank, std = config.hidden_size, config.attention_rank, config.init_std
    if config.attention.init == "variance_matched":
        return std, context.matrix_std((rows, hidden), asks=asks) / std * rank**-0.5
    gain = context.gain(asks=asks)
    if config.attention.init == "xavier":
        return (2 / (hidden + rank)) ** 0.5, gain * (2 / (rank + rows)) ** 0.5
    return std, gain * std


PROJECTIONS: dict[str, type[DenseProjection] | type[LowRankProjection]] = {
    "dense": DenseProjection,
    "mlra": LowRankProjection,
}


class AttentionCore(nn.Module):
    """It computes softmax(q k^T / sqrt(K)) v over the keys that each query sees.

    It is a module so that probes see q and k. Where a sequence attends to itself, queries are those of its last tokens.
    """

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        """Whether queries see only the keys up to their own position, or all of them."""

    def forward(
        self,
        q_BHTK: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        dropout: float,
        keys_BS: Tensor | None = None,
        queries_BT: Tensor | None = None,
    ) -> Tensor:
        """It returns (B, H, T, K); `dropout` is the probability with which attention weights are dropped.

        `keys_BS` tells, as booleans, which keys are not padding. `queries_BT` tells the same of queries; it is for
        probes alone: what comes out for padding is of no use to anyone.
        """
        queries, keys = q_BHTK.shape[2], k_BGSK.shape[2]
        if self.causal and keys_BS is None and 1 < queries < keys:
            keys_BS = k_BGSK.new_ones(1, keys, dtype=torch.bool)  # the kernel would count from the first key
        return F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            attn_mask=None if keys_BS is None else self._mask(keys_BS, queries),
            dropout_p=dropout,
            is_causal=self.causal and keys_BS is None and queries == keys,
            enable_gqa=k_BGSK.shape[1] != q_BHTK.shape[1],
        )

    def _mask(self, keys_BS: Tensor, queries: int) -> Tensor:
        """It returns which keys queries see, (B, 1, T or 1, S). A query that would see none sees all: a softmax over
        nothing is NaN, in the gradient too, where no one asks for it."""
        mask = keys_BS[:, None, None, :]
        if self.causal:
            keys = keys_BS.shape[1]
            mask = mask & mask.new_ones(queries, keys).tril(keys - queries)
        return mask | ~mask.any(dim=-1, keepdim=True)


def split_heads(features_BSN: Tensor, size: int) -> Tensor:
    """It maps (B, S, heads * K) -> (B, heads, S, K)."""
    return features_BSN.unflatten(-1, (-1, size)).transpose(1, 2)


def output_projection(context: LayerContext, name: str) -> RowParallelLinear:
    """It makes the projection from all heads back to the residual stream."""
    config = context.config
    hidden, heads = config.hidden_size, config.attention.num_heads * config.head_size
    return RowParallelLinear(
        heads,
        hidden,
        context.matrix(f"{name}.output", (hidden, heads), residual=True),
        bias=config.bias,
        tensor=context.mesh.tensor,
        spectral=context.spectral,
    )


class SelfAttention(nn.Module):
    """A sequence attends to itself with many heads, cut over the tensor axis, and grouped keys and values."""

    def __init__(self, context: LayerContext, name: str, *, causal: bool = True) -> None:
        super().__init__()
        config = context.config
        self.name = name
        self.head_size = config.head_size
        self.dropout = config.attention.dropout
        self.rotary_base = config.rotary_base if config.positions == "rotary" else None
        self.qkv = PROJECTIONS[config.attention.kind](context, name)
        self.core = AttentionCore(causal=causal)
        self.output = output_projection(context, name)

    def forward(self, x_BSD: Tensor, given: BlockPass, real_BS: Tensor | None = None) -> Tensor:
        """It maps (B, S, D) -> (B, S, D).

        `real_BS` tells, as booleans, which tokens are not padding; none: all.
        """
        q_BHSK, k_BGSK, v_BGSK = self.project(x_BSD, given.rotary)
        probability = seeded_dropout(self.dropout, given, "attention", x_BSD.device)
        y_BHSK = self.core(q_BHSK, k_BGSK, v_BGSK, probability, real_BS, real_BS)
        return self.output(y_BHSK.transpose(1, 2).flatten(2))

    def decode(self, x_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T, D) -> (B, T, D) for the T tokens that follow those of the cache, and adds theirs to it."""
        q_BHTK, k_BGTK, v_BGTK = self.project(x_BTD, self.rotary(x_BTD, cache.length))
        y_BHTK = self.core(q_BHTK, *cache.extended(self.name, k_BGTK, v_BGTK), 0.0)
        return self.output(y_BHTK.transpose(1, 2).flatten(2))

    def queries(self) -> tuple[ColumnParallelLinear, int]:
        """It returns the linear layer that queries come out of, and how many of its local rows make them."""
        return self.qkv.first()

    def rotary(self, x_BSD: Tensor, start: int = 0) -> RotaryTable | None:
        """It returns what rotates queries and keys of tokens whose positions begin with `start`; none: nothing does."""
        if self.rotary_base is None:
            return None
        return rotary_rows(start, x_BSD.shape[1], self.head_size, self.rotary_base, x_BSD.device)

    def project(self, x_BSD: Tensor, table: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor]:
        """It returns queries (B, H, S, K), keys and values (B, G, S, K) as attention sees them, rotated by `table`."""
        q, k, v = (split_heads(part, self.head_size) for part in self.qkv(x_BSD))
        return (rotate(q, *table), rotate(k, *table), v) if table else (q, k, v)


def seeded_dropout(probability: float, given: BlockPass, site: str, device: torch.device) -> float:
    """It returns the probability with which attention weights are dropped in this pass, and seeds the generator that
    they are drawn from. A compiled graph has no such generator."""
    if not (given.draw and probability):
        return 0.0
    assert isinstance(given.draw, MaskSeed), "attention.dropout in a compiled block"
    seed_attention(given.draw.sharded(site), device)
    return probability


def rotary_rows(start: int, length: int, head_size: int, base: float, device: torch.device) -> RotaryTable:
    """It returns the rows of `rotary_table` for positions `start` and on; behind the first ones they are cut out of a
    table that serves further calls."""
    if not start:
        return rotary_table(length, head_size, base, device)
    stop = start + length
    cosine, sine = rotary_table(1 << (stop - 1).bit_length(), head_size, base, device)
    return cosine[start:stop], sine[start:stop]


@lru_cache(maxsize=8)
def rotary_table(length: int, head_size: int, base: float, device: torch.device) -> RotaryTable:
    """It returns cosine and sine (S, K/2), fp32, of the angles position / base^(2i/K).

    See Su et al. 2021, arXiv 2104.09864.
    """
    positions_S = torch.arange(length, device=device, dtype=torch.float64)
    angles = position_angles(positions_S, head_size, base)
    return angles.cos().float(), angles.sin().float()


def position_angles(positions: Tensor, size: int, base: float) -> Tensor:
    """It maps positions (..., S), float64, to the angles position / base^(2i/size), (..., S, ceil(size / 2))."""
    frequencies = base ** (-torch.arange(0, size, 2, device=positions.device, dtype=torch.float64) / size)
    return positions[..., None] * frequencies


def rotate(x_BNSK: Tensor, cosine_SK: Tensor, sine_SK: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i+K/2}) of each head by the angle of their position, computed in fp32 at least."""
    first, second = x_BNSK.to(torch.promote_types(x_BNSK.dtype, cosine_SK.dtype)).chunk(2, dim=-1)
    rotated = (first * cosine_SK - second * sine_SK, first * sine_SK + second * cosine_SK)
    return torch.cat(rotated, dim=-1).to(x_BNSK.dtype)


def dense_attention_state(module: nn.Module) -> dict[str, Tensor]:
    """It returns the state dict of the same model with dense attention: `module` with its low-rank attention folded.

    All tensor ranks must call it; see `LowRankLinear.fold` for what comes first.
    """
    state = dict(module.state_dict())
    for name, layer in module.named_modules():
        if isinstance(layer, LowRankProjection):
            for key in layer.state_dict():
                del state[f"{name}.{key}"]
            state |= {f"{name}.{key}": value for key, value in layer.dense_state().items()}
    return state
