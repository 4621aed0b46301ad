"""Tasks that predict the next token minimise and report this.

B  samples in a micro-batch, S  tokens in a sequence, W  vocabulary rows on this tensor rank
"""

import math
from collections.abc import Sequence

from torch import Tensor

from parallel.cross_entropy import NO_SMOOTHING, Smoothing, vocabulary_parallel_cross_entropy
from parallel.mesh import Axis
from pretrain.tasks.task import Metric


class NextToken:
    """The loss is the weighted sum of the negative log-likelihood of the next token, in nats; with smoothing, that of
    the cross-entropy with smoothed targets."""

    def __init__(self, tensor: Axis, smoothing: Smoothing = NO_SMOOTHING) -> None:
        self._tensor = tensor
        self._smoothing = smoothing

    def __call__(self, logits_BSW: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        """It returns a scalar; `labels` are targets and weights (B, S). The caller scales the weights into a mean."""
        targets_BS, weights_BS = labels
        loss_BS = vocabulary_parallel_cross_entropy(logits_BSW, targets_BS, self._tensor, self._smoothing)
        return (loss_BS * weights_BS).sum()


class Perplexity(Metric):
    """Perplexity is exp of the mean loss: the number of equally likely tokens that would be as hard to guess."""

    name = "perplexity"
    of_loss = True

    def value(self, sums: Sequence[float], loss: float) -> float:
        """It follows from the loss alone, and is infinite where exp overflows float64."""
        try:
            return math.exp(loss)
        except OverflowError:
            return math.inf


class UnsmoothedPerplexity(Perplexity):
    """Perplexity is that of the validation loss alone: a training loss with smoothing is none of the model's."""

    of_loss = False
