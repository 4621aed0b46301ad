"""Dropout has no hidden state: every mask is a pure function of where and when it is drawn.

A mask depends on (seed, step, micro-batch, layer, site, data rank) and, where the masked tensor is cut over
the tensor axis, on the tensor rank. Hence it is the same for every pipeline layout, the same when activation
checkpointing draws it again, and a resumed run needs nothing but the step to draw it as the first run did.

B  samples, S  tokens, D  hidden size
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.initialization import derive_seed
from parallel.mesh import ParallelMesh


@dataclass(frozen=True)
class MaskSeed:
    """It seeds all masks of one layer's pass over one micro-batch."""

    seed: int
    tensor_rank: int

    def replicated(self, site: str) -> int:
        """It returns the seed for a tensor that every tensor rank holds whole: they must drop the same entries."""
        return derive_seed(self.seed, site)

    def chance(self, site: str) -> float:
        """It returns a number in [0, 1) to decide by, the same on all tensor ranks."""
        return (self.replicated(site) >> 10) / 2**53

    def sharded(self, site: str) -> int:
        """It returns the seed for a tensor that is cut over the tensor axis: each rank drops its own entries."""
        return derive_seed(self.seed, site, self.tensor_rank)


class RandomStreams:
    """It hands every layer a fresh `MaskSeed` for each micro-batch of a step."""

    def __init__(self, seed: int, mesh: ParallelMesh) -> None:
        self._seed = seed
        self._data_rank = mesh.data.rank
        self._tensor_rank = mesh.tensor.rank
        self._step = 0
        self._passes: dict[str, int] = {}

    def begin_step(self, step: int) -> None:
        """Start optimizer step `step`: the next pass of each layer is micro-batch 0."""
        self._step = step
        self._passes.clear()

    def draw(self, layer: str) -> MaskSeed:
        """It returns the seed of this layer's next micro-batch; recomputation of activations must not ask again."""
        micro_batch = self._passes.get(layer, 0)
        self._passes[layer] = micro_batch + 1
        parts = (self._seed, self._step, micro_batch, layer, self._data_rank)
        return MaskSeed(derive_seed(*parts), self._tensor_rank)


def dropout(x: Tensor, probability: float, seed: int) -> Tensor:
    """It applies inverted dropout with a mask from `seed` alone."""
    generator = torch.Generator(device=x.device).manual_seed(seed)
    keep = torch.empty_like(x).bernoulli_(1 - probability, generator=generator)
    return x * keep / (1 - probability)  # a Python number: 1/0.9 in bf16 would be 0.16 % off


def seed_attention(seed: int, device: torch.device) -> None:
    """Seed the generator that `scaled_dot_product_attention` draws its dropout from (it takes none)."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
