"""The tensor-parallel linear layers are Megatron-core's, with the group explicit and initial weights of our own.

O  output features, I  input features of the full weight W (O, I)
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from parallel import megatron
from parallel.initialization import Normal, fill_columns, fill_rows
from parallel.mesh import Axis
from parallel.spectral import SpectralConfig, SpectralNorms


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

    def _forward_impl(self, input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return super()._forward_impl(input, substituted(self.spectral, weight), **options)

    def forward(self, x: Tensor) -> Tensor:
        """It maps (..., I) -> (..., O / tensor size)."""
        y, _ = super().forward(x)
        return y


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

    def _forward_impl(self, input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return super()._forward_impl(input, substituted(self.spectral, weight), **options)

    def forward(self, x: Tensor) -> Tensor:
        """It maps (..., I / tensor size) -> (..., O)."""
        y, _ = super().forward(x)
        return y
