"""The blocks that models are made of are written once for every layout.

B  samples in a micro-batch, S  tokens in a sequence, D  hidden size
F  feed-forward size on this tensor rank; everything else is complete on every rank
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from parallel.linear import ColumnParallelLinear, RowParallelLinear
from pretrain.models.attention import BlockPass, RotaryTable, SelfAttention
from pretrain.models.cache import CachedLayer, KeyValueCache
from pretrain.models.compiler import hooked, let_vary
from pretrain.models.context import LayerContext


class FeedForward(nn.Module):
    """The feed-forward layer has GELU, or SwiGLU (Shazeer 2020, arXiv 2002.05202) with gate and value stacked.

    F is cut over the tensor axis.
    """

    def __init__(self, context: LayerContext, name: str) -> None:
        super().__init__()
        config, tensor = context.config, context.mesh.tensor
        self.gated = config.activation == "swiglu"
        inner, hidden = config.ffn_size, config.hidden_size
        names = ("gate", "up") if self.gated else ("up",)
        up = [(inner, context.matrix(f"{name}.{part}", (inner, hidden))) for part in names]
        self.up = ColumnParallelLinear(hidden, up, bias=config.bias, tensor=tensor, spectral=context.spectral)
        self.down = RowParallelLinear(
            inner,
            hidden,
            context.matrix(f"{name}.down", (hidden, inner), residual=True),
            bias=config.bias,
            tensor=tensor,
            spectral=context.spectral,
        )

    def forward(self, x_BSD: Tensor) -> Tensor:
        """It maps (B, S, D) -> (B, S, D)."""
        h = self.up(x_BSD)
        if self.gated:
            gate_BSF, value_BSF = h.chunk(2, dim=-1)
            return self.down(F.silu(gate_BSF) * value_BSF)
        return self.down(F.gelu(h))


class ResidualBlock(nn.Module, ABC):
    """A block is a residual stream that runs around branches f; a subclass says which, in `run`.

    `pre` norms: x + f(norm(x)) (Xiong et al. 2020, arXiv 2002.04745); `post`: norm(x + f(x)) (Vaswani et al. 2017,
    arXiv 1706.03762); `deepnorm`: norm(alpha x + f(x)) (Wang et al. 2022, arXiv 2203.00555); `none`: x + f(x).
    """

    sizes_vary: ClassVar[bool] = False
    """Micro-batches differ in their number of samples and tokens, and what is compiled must serve all."""

    def __init__(self, context: LayerContext, name: str) -> None:
        """`name` sets its dropout masks and initial weights apart from those of other blocks."""
        super().__init__()
        self.name = name
        self.streams = context.streams
        self.dropout = context.config.dropout
        self.layer_drop = context.config.layer_drop
        self.recompute = context.config.activation_checkpointing
        self.compiler = context.compiler
        self.norm_after = context.config.norm_placement in ("post", "deepnorm")
        self.residual_factor = context.residual_factor

    @abstractmethod
    def run(self, given: BlockPass, x_BSD: Tensor, *others: Tensor | None) -> Tensor:
        """It returns the stream behind all branches."""

    def rotary(self, x_BSD: Tensor) -> RotaryTable | None:
        """It returns what `run` is given to rotate queries and keys by, if it does."""
        return None

    def forward(self, x_BSD: Tensor, *others: Tensor | None) -> Tensor:
        """It maps (B, S, D) -> (B, S, D)."""
        draw = self.streams.draw(self.name) if self.training else None
        run, given = self.run, BlockPass(draw, self.rotary(x_BSD))
        if self.compiler and draw and torch.is_grad_enabled() and not hooked(self._parts):
            run, given = partial(self.compiler.call, type(self).run, self), given.as_inputs()
            if self.sizes_vary:
                let_vary([x_BSD, *others], dimensions=2)
                let_vary(given.rotary or (), dimensions=1)
        y_BSD: Tensor
        if self.recompute and torch.is_grad_enabled():
            # Masks come from what is handed over: there is no random state to keep.
            y_BSD = checkpoint(run, given, x_BSD, *others, use_reentrant=False, preserve_rng_state=False)
        else:
            y_BSD = run(given, x_BSD, *others)
        if draw and draw.chance("layer_drop") < self.layer_drop:
            # Chosen and not skipped: all ranks take part in its collectives, and all its weights have a gradient, 0.
            return torch.where(torch.zeros((), dtype=torch.bool, device=x_BSD.device), y_BSD, x_BSD)
        return y_BSD

    @cached_property
    def _parts(self) -> list[nn.Module]:
        """These are all modules inside of the block."""
        return [part for part in self.modules() if part is not self]

    def add(
        self,
        x_BSD: Tensor,
        norm: nn.Module,
        branch: Callable[[Tensor], Tensor],
        given: BlockPass,
        site: str,
    ) -> Tensor:
        """It returns the residual stream after a branch, whose norm comes before or after it."""
        branch_BSD = branch(x_BSD if self.norm_after else norm(x_BSD))
        branch_BSD = given.dropout(branch_BSD, self.dropout, site)
        y_BSD = torch.add(branch_BSD, x_BSD, alpha=self.residual_factor)
        return norm(y_BSD) if self.norm_after else y_BSD


class TransformerBlock(ResidualBlock, CachedLayer):
    """The block is attention of a sequence to itself, causal or not, then feed-forward."""

    def __init__(
        self, context: LayerContext, index: int, *, stack: str = "blocks", causal: bool = True
    ) -> None:
        """`stack` tells the blocks of a model's several stacks apart, such as those of encoder and decoder."""
        super().__init__(context, f"{stack}.{index}")
        self.attention_norm = context.norm()
        self.attention = SelfAttention(context, f"{self.name}.attention", causal=causal)
        self.feed_forward_norm = context.norm()
        self.feed_forward = FeedForward(context, f"{self.name}.feed_forward")

    def rotary(self, x_BSD: Tensor) -> RotaryTable | None:
        return self.attention.rotary(x_BSD)

    def run(self, given: BlockPass, x_BSD: Tensor, *others: Tensor | None) -> Tensor:
        """It maps (B, S, D) -> (B, S, D); the one other tensor, (B, S), tells which tokens are not padding."""
        return self._branches(x_BSD, lambda h_BSD: self.attention(h_BSD, given, *others), given)

    def decode(self, x_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T, D) -> (B, T, D) for the T tokens that follow those of the cache, and adds theirs to it."""
        return self._branches(x_BTD, lambda h_BTD: self.attention.decode(h_BTD, cache), BlockPass())

    def _branches(self, x_BSD: Tensor, attend: Callable[[Tensor], Tensor], given: BlockPass) -> Tensor:
        x_BSD = self.add(x_BSD, self.attention_norm, attend, given, "attention_residual")
        return self.add(x_BSD, self.feed_forward_norm, self.feed_forward, given, "feed_forward_residual")
