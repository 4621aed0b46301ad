"""The tensor-parallel linear layers are Megatron-core's, with the group explicit, and initial weights and products of
our own.

O  output features, I  input features of the full weight W (O, I)
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from parallel import megatron
from parallel.initialization import Normal, fill_columns, fill_rows
from parallel.mesh import Axis
from parallel.spectral import SpectralConfig, SpectralNorms
from parallel.sums import sum_of_ranks, summed_gradient


def megatron_config() -> megatron.ModelParallelConfig:
    """Parameters are allocated on the CPU in fp32 and filled by us; the engine moves and casts them."""
    return megatron.ModelParallelConfig(use_cpu_initialization=True, perform_initialization=False)


def leave_uninitialised(weight: Tensor) -> None:
    """It does nothing: Megatron wants an initialiser, but ours needs to know which rows a shard holds."""


def mark_sharded(parameter: nn.Parameter, dim: int) -> None:
    """Set what Megatron and DeepSpeed read to tell shards from replicas, e.g. in gradient norms."""
    megatron.set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dim, stride=1)


def substituted(spectral: SpectralNorms | None, weight: Tensor) -> Tensor:
    """It returns the weight that a layer computes with: its own, or the reparametrised one."""
    return weight if spectral is None else spectral.substitute(weight)


class _Product(torch.autograd.Function):
    """It computes Y = X W^T + b, and all-reduces the gradient of X, if so asked, beside the product that makes W's.

    It keeps W itself and no view of it, which would hold the whole of a weight that ZeRO-3 gives back meanwhile.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: ProcessGroup | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.group = bias is not None, group
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = gradient @ weight
        sum_of_x = dist.all_reduce(of_x, group=ctx.group, async_op=True) if ctx.group else None
        rows = gradient.flatten(0, -2)
        of_weight = rows.T @ x.flatten(0, -2)
        of_bias = rows.sum(dim=0) if ctx.biased else None
        if sum_of_x:
            sum_of_x.wait()
        return of_x, of_weight, of_bias, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: ProcessGroup | None = None) -> Tensor:
    """It returns X W^T + b, with biases added by the kernel of the product. Over a group, whose ranks have the
    same X and rows of their own, the gradient of X is summed."""
    if torch.compiler.is_compiling():
        return F.linear(x if group is None else summed_gradient(x, group), weight, bias)
    divided = hasattr(weight, "ds_id")  # by which DeepSpeed marks the weights that ZeRO-3 divides
    if group is None and not divided:
        return F.linear(x, weight, bias)
    y: Tensor = _Product.apply(x, weight, bias, group)
    return y


class ColumnParallelLinear(megatron.ColumnParallelLinear):
    """It computes Y = X W^T + b with the rows of W, hence the features of Y, cut over the tensor axis.

    W may be several matrices stacked (q, k and v, say): every rank then holds its share of each, in order,
    so that one product and one all-reduce in the backward pass serve all of them.
    """

    def __init__(
        self,
        in_features: int,
        blocks: Sequence[tuple[int, Normal]],
        *,
        bias: bool,
        tensor: Axis,
        spectral: SpectralConfig | None = None,
    ) -> None:
        super().__init__(
            in_features,
            sum(rows for rows, _ in blocks),
            config=megatron_config(),
            init_method=leave_uninitialised,
            bias=bias,
            tp_group=tensor.group,
        )
        self.local_blocks = [rows // tensor.size for rows, _ in blocks]
        """Rows of each stacked matrix on this rank."""
        mark_sharded(self.weight, dim=0)
        shards = self.weight.detach().split(self.local_blocks)
        for shard, (rows, init) in zip(shards, blocks, strict=True):
            fill_rows(shard, init, num_rows=rows, start=shard.shape[0] * tensor.rank)
        if bias:
            nn.init.zeros_(self.bias)
        self.spectral = None
        if spectral:
            self.spectral = SpectralNorms(self.weight, self.local_blocks, rows_sharded=True, config=spectral)

    def weight_in_use(self) -> Tensor:
        """It returns the weight that it computes with."""
        return substituted(self.spectral, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """It maps (..., I) -> (..., O / tensor size)."""
        return product(x, self.weight_in_use(), self.bias, self.tp_group if self.allreduce_dgrad else None)


class RowParallelLinear(megatron.RowParallelLinear):
    """It computes Y = X W^T + b with the columns of W, hence the features of X, cut over the tensor axis.

    Y is complete on every rank.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        init: Normal,
        *,
        bias: bool,
        tensor: Axis,
        spectral: SpectralConfig | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            config=megatron_config(),
            init_method=leave_uninitialised,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=tensor.group,
        )
        mark_sharded(self.weight, dim=1)
        width = in_features // tensor.size
        fill_columns(self.weight, init, num_columns=in_features, start=width * tensor.rank)
        if bias:
            nn.init.zeros_(self.bias)
        self.spectral = None
        if spectral:
            self.spectral = SpectralNorms(self.weight, [out_features], rows_sharded=False, config=spectral)

    def weight_in_use(self) -> Tensor:
        """It returns the weight that it computes with."""
        return substituted(self.spectral, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """It maps (..., I / tensor size) -> (..., O)."""
        if self.tp_group.size() == 1:
            return product(x, self.weight_in_use(), self.bias)
        sum_up = (
            sum_of_ranks
            if torch.compiler.is_compiling()
            else megatron.reduce_from_tensor_model_parallel_region
        )
        y = sum_up(product(x, self.weight_in_use(), None), group=self.tp_group)
        return y if self.bias is None else y + self.bias
