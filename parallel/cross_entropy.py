"""The cross-entropy over a vocabulary that is cut over the tensor axis keeps the logits and nothing else of their size.

Logits are gone through some tokens at a time, in fp32 at least, and the backward pass puts their gradient in their
place. So a bf16 logit takes two bytes; it would take six with a softmax in fp32, and twelve in torch's own operations.

B  samples, S  tokens in a sequence, N  tokens of all samples
W  the rows of the padded vocabulary that this rank holds
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.mesh import Axis
from parallel.sums import all_reduced

_LOGITS_AT_ONCE = 2**26
"""Some hundred MiB in fp32: few launches."""
_LOGITS_AT_ONCE_ON_CPU = 2**18
"""They stay in the cache from one operation to the next."""


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


class _Targets(NamedTuple):
    """They are probabilities of this rank's rows: 1 - e of a target that is here, and e / V more of each real row."""

    rows_N1: Tensor
    """Of the targets; any, where another rank has it."""
    elsewhere_N1: Tensor | None
    """Whether another rank has it; none: all are here."""
    smoothing: Smoothing
    real: int
    """Rows of this rank that are no padding."""

    def at(self, tokens: slice) -> "_Targets":
        """It returns the same of some tokens."""
        elsewhere = None if self.elsewhere_N1 is None else self.elsewhere_N1[tokens]
        return self._replace(rows_N1=self.rows_N1[tokens], elsewhere_N1=elsewhere)

    def mean(self, values_NW: Tensor) -> Tensor:
        """It returns this rank's part of the mean of values by these probabilities, (N,)."""
        mean_N1 = self._here(values_NW.gather(1, self.rows_N1))
        if share := self.smoothing.share:
            total_N1 = values_NW[:, : self.real].sum(dim=1, keepdim=True)
            mean_N1 = (1 - share) * mean_N1 + share / self.smoothing.tokens * total_N1
        return mean_N1[:, 0]

    def subtract_from(self, values_NW: Tensor) -> Tensor:
        """It subtracts these probabilities in place."""
        taken_N1 = self._here(torch.full_like(values_NW[:, :1], 1 - self.smoothing.share))
        values_NW.scatter_(1, self.rows_N1, values_NW.gather(1, self.rows_N1) - taken_N1)
        if share := self.smoothing.share:
            values_NW[:, : self.real] -= share / self.smoothing.tokens
        return values_NW

    def _here(self, values_N1: Tensor) -> Tensor:
        return values_N1 if self.elsewhere_N1 is None else values_N1.masked_fill(self.elsewhere_N1, 0.0)


class _CrossEntropy(torch.autograd.Function):
    """It maps logits (N, W) to the loss (N,), and to l = log sum_j exp(z_j) over all ranks, (N,).

    The loss is l - sum_j t_j z_j for targets t_j that sum up to 1, and its gradient softmax_i - t_i.

    It is differentiable twice. The gradient depends on the logits by the softmax alone, exp(z_i - l), and l is an
    output of its own for that: as what `forward` merely keeps it would pass for a constant.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NW: Tensor, targets: _Targets, group: ProcessGroup, fused: bool, overwrite: bool
    ) -> tuple[Tensor, Tensor]:
        """`fused` has torch's own softmax over the rows of this rank, which must be the whole vocabulary; `overwrite`
        has the gradient take the place of the logits."""
        dtype = at_least_fp32(logits_NW)
        peaks_N1 = sums_N1 = None
        if fused:
            means_N, log_N = (logits_NW.new_empty(len(logits_NW), dtype=dtype) for _ in range(2))
            for tokens in _a_few_at_once(logits_NW):
                logits, own = logits_NW[tokens], targets.at(tokens)
                logs = torch.log_softmax(logits, dim=1, dtype=dtype)
                means_N[tokens] = own.mean(logs)
                log_N[tokens] = (logits.gather(1, own.rows_N1) - logs.gather(1, own.rows_N1))[:, 0]
            loss_N = -means_N
        else:
            peaks_N1 = all_reduced(logits_NW.amax(dim=1, keepdim=True).to(dtype), group, dist.ReduceOp.MAX)
            both_2N = logits_NW.new_empty(2, len(logits_NW), dtype=dtype)
            for tokens in _a_few_at_once(logits_NW):
                logits = logits_NW[tokens] - peaks_N1[tokens]
                both_2N[0, tokens] = targets.at(tokens).mean(logits)
                torch.sum(logits.exp_(), dim=1, out=both_2N[1, tokens])
            all_reduced(both_2N, group)
            sums_N1, logs_N = both_2N[1, :, None], both_2N[1].log()
            loss_N, log_N = logs_N - both_2N[0], logs_N + peaks_N1[:, 0]
        ctx.save_for_backward(logits_NW, peaks_N1, sums_N1, log_N)
        ctx.targets, ctx.group, ctx.overwrite = targets, group, overwrite
        ctx.set_materialize_grads(False)
        return loss_N, log_N

    @staticmethod
    def backward(
        ctx: Any, grad_N: Tensor | None, grad_log_N: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        """The gradient of the logarithm is there in a second backward pass alone."""
        if grad_log_N is not None or torch.is_grad_enabled():
            return _CrossEntropy._differentiable(ctx, grad_N, grad_log_N), None, None, None, None
        if grad_N is None:
            return None, None, None, None, None
        logits_NW, peaks_N1, sums_N1, _ = ctx.saved_tensors
        gradient_NW = logits_NW.detach() if ctx.overwrite else torch.empty_like(logits_NW)
        for tokens in _a_few_at_once(logits_NW):
            logits = logits_NW[tokens].detach()
            if peaks_N1 is None:
                softmax = torch.softmax(logits, dim=1, dtype=at_least_fp32(logits))
            else:
                softmax = (logits - peaks_N1[tokens]).exp_().div_(sums_N1[tokens])
            ctx.targets.at(tokens).subtract_from(softmax)
            torch.mul(softmax, grad_N[tokens, None], out=gradient_NW[tokens])
        return gradient_NW, None, None, None, None

    @staticmethod
    def _differentiable(ctx: Any, grad_N: Tensor | None, grad_log_N: Tensor | None) -> Tensor:
        """It returns the gradient as a function of all that it depends on, at once for all tokens."""
        logits_NW, _, _, log_N = ctx.saved_tensors
        softmax_NW = (logits_NW - log_N[:, None]).exp()
        gradient_NW = torch.zeros_like(softmax_NW)
        if grad_log_N is not None:
            gradient_NW = softmax_NW * all_reduced(grad_log_N.clone(), ctx.group)[:, None]
        if grad_N is not None:
            less_NW = ctx.targets.subtract_from(torch.zeros_like(softmax_NW))
            gradient_NW = gradient_NW + (softmax_NW + less_NW) * grad_N[:, None]
        return gradient_NW


def at_least_fp32(logits: Tensor) -> torch.dtype:
    """It returns the precision that is computed in."""
    return torch.promote_types(logits.dtype, torch.float32)


def _a_few_at_once(logits_NW: Tensor) -> list[slice]:
    count = _LOGITS_AT_ONCE_ON_CPU if logits_NW.device.type == "cpu" else _LOGITS_AT_ONCE
    size = max(count // logits_NW.shape[1], 1)
    return [slice(start, start + size) for start in range(0, len(logits_NW), size)]


def fuses(logits: Tensor, tensor: Axis) -> bool:
    """It tells whether torch has a kernel that goes through bf16 logits in fp32, of which it needs all of a token."""
    return logits.is_cuda and tensor.size == 1


def vocabulary_parallel_cross_entropy(
    logits_BSW: Tensor, targets_BS: Tensor, tensor: Axis, smoothing: Smoothing = NO_SMOOTHING
) -> Tensor:
    """It returns the negative log-likelihood (B, S), fp32 at least, in nats, of each target, or with smoothing the
    cross-entropy with smoothed targets; the same on all tensor ranks.

    A backward pass overwrites logits that some operation has computed: they are of no use afterwards.
    """
    owner = logits_BSW if logits_BSW._base is None else logits_BSW._base
    width = logits_BSW.shape[-1]
    rows_N1 = targets_BS.reshape(-1, 1) - width * tensor.rank
    elsewhere_N1 = None
    if tensor.size > 1:
        elsewhere_N1 = (rows_N1 < 0) | (rows_N1 >= width)
        rows_N1 = rows_N1.masked_fill(elsewhere_N1, 0)
    targets = _Targets(rows_N1, elsewhere_N1, smoothing, smoothing.rows_on(tensor.rank, width))
    loss_N, _ = _CrossEntropy.apply(
        logits_BSW.reshape(-1, width), targets, tensor.group, fuses(logits_BSW, tensor), not owner.is_leaf
    )
    return loss_N.view_as(targets_BS)
