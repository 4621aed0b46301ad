"""These layers stand before the first block and behind the last one, for tasks over a vocabulary.

B  samples in a micro-batch, S  tokens in a sequence, D  hidden size
V  padded vocabulary, W  the rows of it on this tensor rank
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from parallel.rng import dropout
from parallel.vocab import VocabularyParallelEmbedding, VocabularyParallelHead
from pretrain.models.attention import position_angles
from pretrain.models.cache import CachedLayer, KeyValueCache
from pretrain.models.config import CapeConfig, VocabularyConfig
from pretrain.models.context import LayerContext


class TokenEmbedding(VocabularyParallelEmbedding):
    """It maps token ids (B, S) -> (B, S, D)."""

    def __init__(self, context: LayerContext, vocabulary: VocabularyConfig, name: str = "embedding") -> None:
        super().__init__(
            vocabulary.vocabulary_size,
            vocabulary.padded_vocabulary_size,
            context.config.hidden_size,
            context.weight(name),
            context.mesh.tensor,
        )


class EmbeddingPositions(nn.Module, CachedLayer):
    """It adds learned, sinusoidal or augmented positions, where the model has them, and drops out: (B, S, D) -> (B, S,
    D)."""

    def __init__(
        self,
        context: LayerContext,
        sequence_length: int,
        name: str = "positions",
        factor: float | None = None,
    ) -> None:
        """What sinusoidal positions are added to is multiplied by `factor` first; none: by sqrt(D), since tables begin
        with numbers that are much smaller than those."""
        super().__init__()
        self.name = name
        self.streams = context.streams
        self.dropout = context.config.dropout
        self.factor = context.config.hidden_size**0.5 if factor is None else factor
        self.sinusoidal = context.config.positions in ("sinusoidal", "cape")
        self.moved = context.config.cape if context.config.positions == "cape" else None
        self.positions_SD: nn.Parameter | None = None
        if context.config.positions == "learned":
            init = context.weight(name)
            table = init.rows(0, sequence_length, sequence_length, context.config.hidden_size)
            self.positions_SD = nn.Parameter(table)

    def forward(self, x_BSD: Tensor) -> Tensor:
        if not self.training:
            return self._positioned(x_BSD, 0)
        draw = self.streams.draw(self.name)
        if self.moved:
            positions_BS = moved_positions(x_BSD, self.moved, draw.replicated("positions"))
            x_BSD = x_BSD * self.factor + sinusoids(positions_BS, x_BSD.shape[-1]).to(x_BSD.dtype)
        else:
            x_BSD = self._positioned(x_BSD, 0)
        return dropout(x_BSD, self.dropout, draw.replicated("embedding")) if self.dropout else x_BSD

    def decode(self, x_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It gives T tokens the positions that follow those of the cache: (B, T, D) -> (B, T, D)."""
        return self._positioned(x_BTD, cache.length)

    def _positioned(self, x_BTD: Tensor, start: int) -> Tensor:
        stop = start + x_BTD.shape[1]
        if self.sinusoidal:
            size = x_BTD.shape[-1]
            table = sinusoidal_table(1 << (stop - 1).bit_length(), size, x_BTD.device)
            return x_BTD * self.factor + table[start:stop].to(x_BTD.dtype)
        if self.positions_SD is None:
            return x_BTD
        return x_BTD + self.positions_SD[start:stop]


@lru_cache(maxsize=8)
def sinusoidal_table(length: int, size: int, device: torch.device) -> Tensor:
    """It returns `sinusoids` (S, D) of the positions from 0 on."""
    return sinusoids(torch.arange(length, device=device, dtype=torch.float64), size)


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """It maps positions (..., S), float64, to (..., S, D), fp32: entry 2 i of position p is sin(p / 10000^(2i/D)), and
    entry 2 i + 1 the cosine of the same.

    See Vaswani et al. 2017, arXiv 1706.03762, 3.5. Entries are as large as 1; so the embedding is multiplied by sqrt(D)
    first (3.4 there), since tables begin with much smaller ones.
    """
    angles = position_angles(positions, size, 10_000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :size].float()


def moved_positions(x_BSD: Tensor, cape: CapeConfig, seed: int) -> Tensor:
    """It returns the positions (B, S), float64, of sequences that are shifted and stretched by chance (Likhomanenko et
    al. 2021, arXiv 2106.03143, 3)."""
    (batch, length, _), device = x_BSD.shape, x_BSD.device
    generator = torch.Generator(device=device).manual_seed(seed)

    def uniform(columns: int, most: float) -> Tensor:
        drawn = torch.rand(batch, columns, device=device, dtype=torch.float64, generator=generator)
        return (2 * drawn - 1) * most

    positions_S = torch.arange(length, device=device, dtype=torch.float64)
    moved_BS = positions_S + uniform(1, cape.global_shift) + uniform(length, cape.local_shift)
    return moved_BS * uniform(1, math.log(cape.global_scale)).exp()


class FinalNorm(nn.Module):
    """It normalizes what goes into the head: (B, S, D) -> (B, S, D).

    Where blocks end in a norm (`post`) or there are none it is the identity, so that the partition is the same.
    """

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.norm = context.norm() if context.config.norm_placement == "pre" else nn.Identity()

    def forward(self, x_BSD: Tensor) -> Tensor:
        y_BSD: Tensor = self.norm(x_BSD)
        return y_BSD


class VocabularyHead(VocabularyParallelHead):
    """It maps (B, S, D) -> logits (B, S, W)."""

    def __init__(self, context: LayerContext, vocabulary: VocabularyConfig, name: str = "head") -> None:
        super().__init__(
            vocabulary.vocabulary_size,
            vocabulary.padded_vocabulary_size,
            context.config.hidden_size,
            context.weight(name),
            context.mesh.tensor,
        )
