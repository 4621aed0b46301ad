"""Low-rank linear layers compute several products U_i D_i of one input over the tensor axis.

Rows of U_i, the features that come out, are always cut over the tensor axis. The D_i are stacked in one matrix,
whole on every rank or with the rows of each D_i cut; latents are complete on every rank either way.

I  input features, R  rank, L  number of products: D (L R, I), U_i (O_i, R)
P  tensor-parallel size, T  tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parallel.initialization import Normal, fill_rows
from parallel.linear import ColumnParallelLinear, product, substituted
from parallel.mesh import Axis
from parallel.spectral import SpectralConfig, SpectralNorms

DownProjection = Literal["replicated", "sharded"]


@dataclass(frozen=True)
class Factors:
    """The factors make one product U D."""

    rows: int
    """Output features of the whole U, over all ranks."""
    down: Normal
    up: Normal


class ReplicatedLinear(nn.Module):
    """It computes Y = X W^T + b with all of W, several matrices stacked, on every tensor rank.

    The gradient of Y must be complete on every rank; those of X and W then are, with no communication.
    """

    def __init__(
        self,
        in_features: int,
        blocks: Sequence[tuple[int, Normal]],
        *,
        tensor: Axis,
        bias: bool = False,
        spectral: SpectralConfig | None = None,
    ) -> None:
        super().__init__()
        self.local_blocks = [rows for rows, _ in blocks]
        """Rows of each stacked matrix."""
        self.weight = nn.Parameter(torch.empty(sum(self.local_blocks), in_features))
        shards = self.weight.detach().split(self.local_blocks)
        for shard, (rows, init) in zip(shards, blocks, strict=True):
            fill_rows(shard, init, num_rows=rows, start=0)
        self.bias = nn.Parameter(torch.zeros(len(self.weight))) if bias else None
        self.spectral = None
        if spectral:
            self.spectral = SpectralNorms(
                self.weight, self.local_blocks, rows_sharded=True, config=spectral, copies=tensor.size
            )

    def forward(self, x: Tensor) -> Tensor:
        """It maps (..., I) -> (..., O)."""
        return product(x, substituted(self.spectral, self.weight), self.bias)


class UpProjection(ColumnParallelLinear):
    """It is column-parallel, but the gradient of its input stays this rank's part.

    The gradient of the latents is summed once for all products.
    """

    def __init__(
        self, rank: int, product: Factors, *, bias: bool, tensor: Axis, spectral: SpectralConfig | None
    ) -> None:
        super().__init__(rank, [(product.rows, product.up)], bias=bias, tensor=tensor, spectral=spectral)
        self.allreduce_dgrad = False


class _SumGradients(torch.autograd.Function):
    """It maps latents (..., L R) -> L x (..., R), the same on every rank, and sums their gradients over the ranks.

    Megatron-core 0.16's own pair drops the sum of a gradient that is not contiguous (`mappings._reduce`).
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, count: int, group: ProcessGroup) -> tuple[Tensor, ...]:
        ctx.group = group
        return latents.chunk(count, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = torch.cat(gradients, dim=-1)
        dist.all_reduce(total, group=ctx.group)
        return total, None, None


def _gather(own: Tensor, group: ProcessGroup) -> Tensor:
    """It returns what every rank holds, (P, ...)."""
    parts = own.new_empty(group.size() * own.shape[0], *own.shape[1:])
    dist.all_gather_into_tensor(parts, own.contiguous(), group=group)
    return parts.unflatten(0, (group.size(), -1))


class _GatherLatents(torch.autograd.Function):
    """It maps this rank's rows (..., L R/P) -> L x (..., R).

    Of their gradients each rank gets its rows, summed over the ranks. Megatron-core 0.16 has the pair for one tensor,
    but it allocates on CUDA alone and leaves the L latents interleaved by rank, which costs one more copy either way.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int, group: ProcessGroup) -> tuple[Tensor, ...]:
        ctx.group = group
        parts = _gather(own, group)
        return tuple(torch.cat(part.unbind(), dim=-1) for part in parts.chunk(count, dim=-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ranks = (ctx.group.size(), -1)
        parts = torch.stack([g.unflatten(-1, ranks).movedim(-2, 0) for g in gradients], dim=-2)
        own = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(own, parts.flatten(0, 1), group=ctx.group)
        return own.flatten(-2), None, None


class LowRankLinear(nn.Module):
    """It computes Y_i = U_i (D_i X) + b_i for several products of one input; Y_i is cut by features over the axis.

    The gradient that a rank has of the latents is its own rows' part. `replicated` sums it over the ranks, L R
    numbers a token, which makes the gradients of X and of D complete at once, and equal to the bit. (Summing those
    instead moves I numbers a token and L R I for the weight: less only where L R > I and micro-batches are longer
    than L R I / (L R - I) tokens, 3 I at R = I/2; and with ZeRO-2 and 3 once per micro-batch, in the compute dtype.)
    `sharded` gathers the latents, scatters their summed gradient, and sums that of X as column-parallel layers
    do: more traffic, for 1/P of D's memory and products.
    """

    def __init__(
        self,
        in_features: int,
        rank: int,
        factors: Sequence[Factors],
        *,
        bias: bool,
        down_projection: DownProjection,
        tensor: Axis,
        spectral: SpectralConfig | None = None,
    ) -> None:
        super().__init__()
        self.tensor = tensor
        self.sharded = down_projection == "sharded"
        down = [(rank, product.down) for product in factors]
        self.down = (
            ColumnParallelLinear(in_features, down, bias=False, tensor=tensor, spectral=spectral)
            if self.sharded
            else ReplicatedLinear(in_features, down, tensor=tensor, spectral=spectral)
        )
        self.up = nn.ModuleList(
            UpProjection(rank, product, bias=bias, tensor=tensor, spectral=spectral) for product in factors
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """It maps (..., I) -> (..., O_i / tensor size) for each product."""
        return tuple(up(latent) for up, latent in zip(self.up, self._latents(x), strict=True))

    def _latents(self, x: Tensor) -> tuple[Tensor, ...]:
        """It returns L x (..., R), the same on every rank."""
        latents, count, group = self.down(x), len(self.up), self.tensor.group
        if self.tensor.size == 1:
            return latents.chunk(count, dim=-1)
        distribute = _GatherLatents if self.sharded else _SumGradients
        return distribute.apply(latents, count, group)

    @torch.no_grad()
    def fold(self) -> list[tuple[Tensor, Tensor | None]]:
        """It returns the dense weight (O_i / tensor size, I) and bias of each product, for the rows of this rank.

        All tensor ranks must call it. Products are taken in fp32. Reparametrised factors are folded first
        (`parallel.spectral.fold`), weights divided by ZeRO-3 gathered first.
        """
        folded = []
        for up, down in zip(self.up, self._whole_down().chunk(len(self.up)), strict=True):
            assert isinstance(up, UpProjection)
            folded.append(((up.weight.float() @ down.float()).to(up.weight.dtype), up.bias))
        return folded

    def _whole_down(self) -> Tensor:
        """It returns D (L R, I)."""
        weight = self.down.weight
        if not self.sharded or self.tensor.size == 1:
            return weight
        parts = _gather(weight, self.tensor.group)
        return parts.unflatten(1, (len(self.up), -1)).transpose(0, 1).flatten(0, 2)
