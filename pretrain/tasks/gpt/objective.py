"""The objective of a GPT: it predicts the next token.

B  samples in a micro-batch, S  tokens in a sequence, W  vocabulary rows on this tensor rank
"""

from torch import Tensor

from parallel.mesh import Axis
from parallel.vocab import vocabulary_parallel_cross_entropy


class NextToken:
    """The loss is the weighted sum of the negative log-likelihood of the next token, in nats."""

    def __init__(self, tensor: Axis) -> None:
        self._tensor = tensor

    def __call__(self, logits_BSW: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        """It returns a scalar; `labels` are targets and weights (B, S). The caller scales the weights into a mean."""
        targets_BS, weights_BS = labels
        nll_BS = vocabulary_parallel_cross_entropy(logits_BSW, targets_BS, self._tensor)
        return (nll_BS * weights_BS).sum()
