"""The vocabulary-parallel embedding is Megatron-core's, with the group explicit; the head is a column-parallel layer.

B  samples, S  tokens in a sequence, D  hidden size
V  padded vocabulary, W  the rows of it that this rank holds
"""

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import megatron
from parallel.initialization import Normal, fill_rows
from parallel.linear import ColumnParallelLinear, leave_uninitialised, mark_sharded, megatron_config
from parallel.mesh import Axis
from parallel.sums import all_reduced


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
            # Autograd need not know, and would copy the whole gradient: that of exp(-inf) is zero anyway.
            with torch.no_grad():
                logits_BSW[..., self.valid_rows :] = float("-inf")
        return logits_BSW


def vocabulary_parallel_argmax(logits_BSW: Tensor, tensor: Axis) -> Tensor:
    """It returns the token (B, S), int64, with the largest logit, of equals the first; the same on all tensor ranks."""
    rows = logits_BSW.shape[-1]
    peaks_BS, tokens_BS = logits_BSW.detach().float().max(dim=-1)
    highest_BS = peaks_BS.clone()
    all_reduced(highest_BS, tensor.group, dist.ReduceOp.MAX)
    beyond = rows * tensor.size
    tokens_BS = torch.where(peaks_BS == highest_BS, tokens_BS + rows * tensor.rank, beyond)
    return all_reduced(tokens_BS, tensor.group, dist.ReduceOp.MIN)


def vocabulary_parallel_logits(logits_BSW: Tensor, tensor: Axis) -> Tensor:
    """It returns the logits (B, S, V) of the whole padded vocabulary, the same on all tensor ranks."""
    if tensor.size == 1:
        return logits_BSW
    parts = [torch.empty_like(logits_BSW, memory_format=torch.contiguous_format) for _ in range(tensor.size)]
    dist.all_gather(parts, logits_BSW.contiguous(), group=tensor.group)
    return torch.cat(parts, dim=-1)
