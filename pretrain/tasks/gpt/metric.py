"""This is what validation reports of a GPT beside the loss."""

import math
from collections.abc import Sequence

from pretrain.tasks.task import Metric


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
