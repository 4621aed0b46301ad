"""Dropout has no hidden state: every mask is a pure function of where and when it is drawn.

A mask depends on (seed, step, micro-batch, layer, site, data rank) and, where the masked tensor is cut over
the tensor axis, on the tensor rank. Hence it is the same for every pipeline layout, the same when activation
checkpointing draws it again, and a resumed run needs nothing but the step to draw it as the first run did.

B  samples, S  tokens, D  hidden size
"""

from collections.abc import Sequence
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

    def dropout(self, x: Tensor, probability: float, site: str) -> Tensor:
        """It applies dropout to a tensor that every tensor rank holds whole."""
        return dropout(x, probability, self.replicated(site))

    def as_input(self) -> "SeedInput":
        """It returns the same for a compiled graph."""
        return SeedInput(torch.tensor(self.seed))


@dataclass(frozen=True)
class SeedInput:
    """A compiled graph gets the seed of a layer's pass as a tensor: numbers would be part of the graph, and others call
    for another graph."""

    seed: Tensor
    """int64, on the CPU whatever the device: nothing waits for it."""

    def dropout(self, x: Tensor, probability: float, site: str) -> Tensor:
        """It does what `MaskSeed` does, to the bit."""
        keep = keep_mask(x.shape, x.dtype, x.device, probability, self.seed, site)
        return x * keep / (1 - probability)


@torch.library.custom_op("surefoot::keep_mask", mutates_args=())
def keep_mask(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    probability: float,
    seed: Tensor,
    site: str,
) -> Tensor:
    """It draws the mask of `dropout` as one operator, which no compiler looks into: seeds follow from text."""
    return draw_mask(shape, dtype, device, probability, derive_seed(seed.item(), site))


@keep_mask.register_fake
def _(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    probability: float,
    seed: Tensor,
    site: str,
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


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
    keep = draw_mask(x.shape, x.dtype, x.device, probability, seed)
    return x * keep / (1 - probability)  # a Python number: 1/0.9 in bf16 would be 0.16 % off


def draw_mask(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, probability: float, seed: int
) -> Tensor:
    """It returns 1 for entries that dropout keeps and 0 for others, however the tensor lies that it is for."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.empty(shape, dtype=dtype, device=device).bernoulli_(1 - probability, generator=generator)


def seed_attention(seed: int, device: torch.device) -> None:
    """Seed the generator that `scaled_dot_product_attention` draws its dropout from (it takes none)."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
