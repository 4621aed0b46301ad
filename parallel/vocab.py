"""Vocabulary-parallel embedding, head and cross-entropy are Megatron-core's, with the group explicit.

B  samples, S  tokens in a sequence, D  hidden size
V  padded vocabulary, W  the rows of it that this rank holds
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel import megatron
from parallel.initialization import Normal, fill_rows
from parallel.linear import ColumnParallelLinear, leave_uninitialised, mark_sharded, megatron_config
from parallel.megatron import VocabParallelCrossEntropy
from parallel.mesh import Axis


class VocabularyParallelEmbedding(megatron.VocabParallelEmbedding):
    """The embedding table (V, D) has its rows cut over the tensor axis; rows of the padding are zero."""

    def __init__(
        self, vocabulary_size: int, padded_size: int, hidden_size: int, init: Normal, tensor: Axis
    ) -> None:
        super().__init__(
            padded_size,
            hidden_size,
            init_method=leave_uninitialised,
            config=megatron_config(),
            tp_group=tensor.group,
        )
        mark_sharded(self.weight, dim=0)
        fill_rows(
            self.weight, init, num_rows=padded_size, start=self.vocab_start_index, valid_rows=vocabulary_size
        )

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """It maps int64 (B, S) -> (B, S, D), complete on every rank."""
        return super().forward(tokens_BS)


class VocabularyParallelHead(ColumnParallelLinear):
    """It computes logits over this rank's rows of the vocabulary.

    Those of the padding are -inf, so nothing is predicted there.
    """

    def __init__(
        self, vocabulary_size: int, padded_size: int, hidden_size: int, init: Normal, tensor: Axis
    ) -> None:
        super().__init__(hidden_size, [(padded_size, init)], bias=False, tensor=tensor)
        local_rows = padded_size // tensor.size
        self.valid_rows = min(max(vocabulary_size - local_rows * tensor.rank, 0), local_rows)
        with torch.no_grad():
            self.weight[self.valid_rows :].zero_()

    def forward(self, x_BSD: Tensor) -> Tensor:
        """It maps (B, S, D) -> (B, S, W)."""
        logits_BSW = super().forward(x_BSD)
        if self.valid_rows < logits_BSW.shape[-1]:
            logits_BSW[..., self.valid_rows :] = float("-inf")
        return logits_BSW


class Smoothing(NamedTuple):
    """Label smoothing takes `share` of a target's probability and spreads it over all tokens of the real vocabulary,
    the target among them (Szegedy et al. 2016, arXiv 1512.00567, section 7)."""

    share: float
    tokens: int
    """Of the real vocabulary; those behind are padding and get nothing."""

    def rows_on(self, rank: int, rows: int) -> int:
        """It counts the real ones among the `rows` rows of a tensor-parallel rank."""
        return min(max(self.tokens - rows * rank, 0), rows)


NO_SMOOTHING = Smoothing(0.0, 0)


class _CrossEntropy(torch.autograd.Function):
    """It joins Megatron-core 0.16's pieces of the cross-entropy, whose own Function has the group in global state.

    Smoothing turns log sum_j exp(z_j) - z_t into log sum_j exp(z_j) - (1 - e) z_t - e mean_j z_j. Its gradient is
    softmax_i - (1 - e) [i = t] - e / V, V the size of the real vocabulary.

    It is differentiable twice. The gradient depends on the logits by the softmax alone, which is an output of its own
    for that: as what `forward` merely keeps it would pass for a constant, and the second derivative for zero.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_BSW: Tensor, targets_BS: Tensor, group: ProcessGroup, smoothing: Smoothing
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits_BSW.dtype, torch.float32)
        logits_BSW = logits_BSW.to(dtype, copy=True)  # the pieces below work in place
        peak_BS = logits_BSW.max(dim=-1).values
        dist.all_reduce(peak_BS, op=dist.ReduceOp.MAX, group=group)
        start = logits_BSW.shape[-1] * dist.get_rank(group)
        real = smoothing.rows_on(dist.get_rank(group), logits_BSW.shape[-1])
        above_BS = logits_BSW[..., :real].sum(dim=-1) - real * peak_BS if smoothing.share else None
        mask_BS, rows, target_logits_BS, sums_BS, exp_BSW = (
            VocabParallelCrossEntropy.calculate_predicted_logits(
                logits_BSW, targets_BS, peak_BS, start, start + logits_BSW.shape[-1]
            )
        )
        if above_BS is not None:
            target_logits_BS.mul_(1 - smoothing.share).add_(
                above_BS, alpha=smoothing.share / smoothing.tokens
            )
        both_2BS = torch.stack((target_logits_BS, sums_BS))
        dist.all_reduce(both_2BS, group=group)
        softmax_BSW, loss_BS = VocabParallelCrossEntropy.calculate_cross_entropy_loss(exp_BSW, *both_2BS)
        ctx.save_for_backward(softmax_BSW, mask_BS, rows)
        ctx.smoothing, ctx.real, ctx.group = smoothing, real, group
        ctx.set_materialize_grads(False)
        return loss_BS, softmax_BSW

    @staticmethod
    def backward(
        ctx: Any, grad_BS: Tensor | None, grad_BSW: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        """The gradient of the softmax is there in a second backward pass alone."""
        of_loss = None if grad_BS is None else _CrossEntropy._of_loss(ctx, grad_BS)
        of_softmax = None if grad_BSW is None else _CrossEntropy._of_softmax(ctx, grad_BSW)
        both = [part for part in (of_loss, of_softmax) if part is not None]
        return sum(both[1:], start=both[0]) if both else None, None, None, None

    @staticmethod
    def _of_softmax(ctx: Any, grad_BSW: Tensor) -> Tensor:
        softmax_BSW = ctx.saved_tensors[0]
        mean_BS1 = (softmax_BSW * grad_BSW).sum(dim=-1, keepdim=True)
        dist.all_reduce(mean_BS1, group=ctx.group)
        return softmax_BSW * (grad_BSW - mean_BS1)

    @staticmethod
    def _of_loss(ctx: Any, grad_BS: Tensor) -> Tensor:
        softmax_BSW, mask_BS, rows = ctx.saved_tensors
        if torch.is_grad_enabled():  # there will be a second pass, which needs it as it is
            softmax_BSW = softmax_BSW.clone()
        operands = VocabParallelCrossEntropy.prepare_gradient_calculation_operands(softmax_BSW, mask_BS)
        gradient_2d, positions, update, gradient_BSW = operands
        if share := ctx.smoothing.share:
            update = (1 - share) * update.to(softmax_BSW.dtype)
            gradient_BSW[..., : ctx.real] -= share / ctx.smoothing.tokens
        VocabParallelCrossEntropy.calculate_gradients(
            gradient_2d, positions, rows, update, gradient_BSW, grad_BS
        )
        gradient: Tensor = gradient_BSW
        return gradient


def vocabulary_parallel_cross_entropy(
    logits_BSW: Tensor, targets_BS: Tensor, tensor: Axis, smoothing: Smoothing = NO_SMOOTHING
) -> Tensor:
    """It returns the negative log-likelihood (B, S), fp32 at least, in nats, of each target, or with smoothing the
    cross-entropy with smoothed targets; the same on all tensor ranks."""
    loss_BS, _ = _CrossEntropy.apply(logits_BSW, targets_BS, tensor.group, smoothing)
    return loss_BS


def vocabulary_parallel_argmax(logits_BSW: Tensor, tensor: Axis) -> Tensor:
    """It returns the token (B, S), int64, with the largest logit, of equals the first; the same on all tensor ranks."""
    rows = logits_BSW.shape[-1]
    peaks_BS, tokens_BS = logits_BSW.detach().float().max(dim=-1)
    highest_BS = peaks_BS.clone()
    dist.all_reduce(highest_BS, op=dist.ReduceOp.MAX, group=tensor.group)
    beyond = rows * tensor.size
    tokens_BS = torch.where(peaks_BS == highest_BS, tokens_BS + rows * tensor.rank, beyond)
    dist.all_reduce(tokens_BS, op=dist.ReduceOp.MIN, group=tensor.group)
    return tokens_BS


def vocabulary_parallel_logits(logits_BSW: Tensor, tensor: Axis) -> Tensor:
    """It returns the logits (B, S, V) of the whole padded vocabulary, the same on all tensor ranks."""
    if tensor.size == 1:
        return logits_BSW
    parts = [torch.empty_like(logits_BSW, memory_format=torch.contiguous_format) for _ in range(tensor.size)]
    dist.all_gather(parts, logits_BSW.contiguous(), group=tensor.group)
    return torch.cat(parts, dim=-1)
