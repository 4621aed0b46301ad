"""The layers that models are made of, written once for every layout.

B  samples in a micro-batch, S  tokens in a sequence, D  hidden size
H  query heads (local), G  key and value heads (local), K  head size, F  feed-forward size (local)
"local" is this tensor rank's share; everything else is complete on every rank.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from parallel.initialization import Normal
from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.mesh import ParallelMesh
from parallel.rng import Draw, RandomStreams, dropout, seed_attention
from parallel.spectral import SpectralConfig
from pretrain.config import ModelConfig


@dataclass(frozen=True)
class LayerContext:
    """What every layer of a model is built with."""

    config: ModelConfig
    mesh: ParallelMesh
    streams: RandomStreams
    norm_class: type[nn.Module]
    """LayerNorm or RMSNorm implementation: (size, eps=, bias= where it has one)."""
    seed: int

    def weight(self, name: str, *, residual: bool = False) -> Normal:
        """Initial weights of the matrix called `name`, as in GPT-2: N(0, std^2), residual projections with
        std / sqrt(2 layers), so that the residual stream does not grow with depth (Radford et al. 2019, 2.3).
        """
        std = self.config.init_std
        return Normal(self.seed, name, std / (2 * self.config.num_layers) ** 0.5 if residual else std)

    @property
    def spectral(self) -> SpectralConfig | None:
        """How the matrices of the blocks are reparametrised."""
        if self.config.reparametrization == "none":
            return None
        return SpectralConfig(self.config.reparametrization, self.config.gamma_init)

    def norm(self) -> nn.Module:
        """A normalization layer over D."""
        config = self.config
        return make_norm(self.norm_class, config.hidden_size, config.normalization_epsilon, bias=config.bias)


def make_norm(norm_class: type[nn.Module], size: int, epsilon: float, *, bias: bool) -> nn.Module:
    """A norm layer with gain 1 and, for LayerNorm, an optional bias 0."""
    if issubclass(norm_class, nn.LayerNorm):
        return norm_class(size, eps=epsilon, bias=bias)
    return norm_class(size, eps=epsilon)


@lru_cache(maxsize=8)
def rotary_table(length: int, head_size: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine (S, K/2), fp32, of the angles position / base^(2i/K) (Su et al. 2021, arXiv 2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_size, 2, device=device, dtype=torch.float64) / head_size)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BNSK: Tensor, cosine_SK: Tensor, sine_SK: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i+K/2}) of each head by the angle of their position, computed in fp32."""
    first, second = x_BNSK.float().chunk(2, dim=-1)
    rotated = (first * cosine_SK - second * sine_SK, first * sine_SK + second * cosine_SK)
    return torch.cat(rotated, dim=-1).to(x_BNSK.dtype)


class SelfAttention(nn.Module):
    """Causal multi-head attention, heads cut over the tensor axis, with grouped keys and values."""

    def __init__(self, context: LayerContext, name: str) -> None:
        super().__init__()
        config, tensor = context.config, context.mesh.tensor
        heads, groups, size = config.attention.num_heads, config.num_key_value_heads, config.head_size
        self.config = config
        self.num_heads, self.num_groups = heads // tensor.size, groups // tensor.size
        self.qkv = ColumnParallelLinear(
            config.hidden_size,
            [
                (heads * size, context.weight(f"{name}.query")),
                (groups * size, context.weight(f"{name}.key")),
                (groups * size, context.weight(f"{name}.value")),
            ],
            bias=config.bias,
            tensor=tensor,
            spectral=context.spectral,
        )
        self.output = RowParallelLinear(
            heads * size,
            config.hidden_size,
            context.weight(f"{name}.output", residual=True),
            bias=config.bias,
            tensor=tensor,
            spectral=context.spectral,
        )

    def forward(self, x_BSD: Tensor, draw: Draw | None) -> Tensor:
        """(B, S, D) -> (B, S, D); `draw` seeds the dropout, none leaves it out."""
        q_BHSK, k_BGSK, v_BGSK = self._project(x_BSD)
        probability = self.config.attention.dropout if draw else 0.0
        if draw and probability:
            seed_attention(draw.sharded("attention"), x_BSD.device)
        y_BHSK = F.scaled_dot_product_attention(
            q_BHSK,
            k_BGSK,
            v_BGSK,
            dropout_p=probability,
            is_causal=True,
            enable_gqa=self.num_groups != self.num_heads,
        )
        return self.output(y_BHSK.transpose(1, 2).flatten(2))

    def _project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x_BSD.shape
        q, k, v = (
            part.view(batch, length, -1, self.config.head_size).transpose(1, 2)
            for part in self.qkv(x_BSD).split(self.qkv.local_blocks, dim=-1)
        )
        if self.config.positions == "rotary":
            table = rotary_table(length, self.config.head_size, self.config.rotary_base, x_BSD.device)
            q, k = rotate(q, *table), rotate(k, *table)
        return q, k, v


class FeedForward(nn.Module):
    """GELU, or SwiGLU (Shazeer 2020, arXiv 2002.05202) with gate and value stacked; F cut over the tensor axis."""

    def __init__(self, context: LayerContext, name: str) -> None:
        super().__init__()
        config, tensor = context.config, context.mesh.tensor
        self.gated = config.activation == "swiglu"
        up = [(config.ffn_size, context.weight(f"{name}.up"))]
        if self.gated:
            up.insert(0, (config.ffn_size, context.weight(f"{name}.gate")))
        self.up = ColumnParallelLinear(
            config.hidden_size, up, bias=config.bias, tensor=tensor, spectral=context.spectral
        )
        self.down = RowParallelLinear(
            config.ffn_size,
            config.hidden_size,
            context.weight(f"{name}.down", residual=True),
            bias=config.bias,
            tensor=tensor,
            spectral=context.spectral,
        )

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        h = self.up(x_BSD)
        if self.gated:
            gate_BSF, value_BSF = h.chunk(2, dim=-1)
            return self.down(F.silu(gate_BSF) * value_BSF)
        return self.down(F.gelu(h))


class TransformerBlock(nn.Module):
    """Pre-LN block: x + attention(norm(x)), then x + feed_forward(norm(x)) (Xiong et al. 2020, arXiv 2002.04745)."""

    def __init__(self, context: LayerContext, index: int) -> None:
        super().__init__()
        self.name = f"blocks.{index}"
        self.streams = context.streams
        self.dropout = context.config.dropout
        self.recompute = context.config.activation_checkpointing
        self.attention_norm = context.norm()
        self.attention = SelfAttention(context, f"{self.name}.attention")
        self.feed_forward_norm = context.norm()
        self.feed_forward = FeedForward(context, f"{self.name}.feed_forward")

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        draw = self.streams.draw(self.name) if self.training else None
        if self.recompute and torch.is_grad_enabled():
            # Masks come from `draw`, which is handed over: there is no random state to keep.
            y: Tensor = checkpoint(self._run, x_BSD, draw, use_reentrant=False, preserve_rng_state=False)
            return y
        return self._run(x_BSD, draw)

    def _run(self, x_BSD: Tensor, draw: Draw | None) -> Tensor:
        x_BSD = self._add(x_BSD, self.attention(self.attention_norm(x_BSD), draw), draw, "attention_residual")
        return self._add(
            x_BSD, self.feed_forward(self.feed_forward_norm(x_BSD)), draw, "feed_forward_residual"
        )

    def _add(self, x_BSD: Tensor, branch_BSD: Tensor, draw: Draw | None, site: str) -> Tensor:
        if draw and self.dropout:
            branch_BSD = dropout(branch_BSD, self.dropout, draw.replicated(site))
        return x_BSD + branch_BSD
