"""The next token is chosen from logits: the likeliest one, or one that is drawn from the likelier ones.

V  vocabulary     N  tokens that may be drawn
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.errors import CheckpointError


@dataclass(frozen=True)
class Sampling:
    """It says how tokens are chosen."""

    temperature: float = 1.0
    """Logits are divided by it; 0: always the likeliest token."""
    top_k: int | None = None
    """Only so many tokens, the likeliest ones, may be drawn."""
    top_p: float = 1.0
    """Of those only the fewest, the likeliest ones, that have this probability together (Holtzman et al. 2020, arXiv
    1904.09751)."""
    seed: int = 0
    """Of the draws."""


class Sampler:
    """It draws one token after the other; those of one seed are the same wherever the logits are.

    Draws come from a generator of its own, on the CPU.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits_V: Tensor) -> int:
        """It returns the next token.

        Raises:
            CheckpointError: the logits are no numbers: the model has diverged.
        """
        probabilities_N, tokens_N = likelier(logits_V, self._sampling)
        if len(tokens_N) == 1:
            return int(tokens_N)
        sums_N = probabilities_N.cumsum(0)
        total = sums_N[-1:]
        drawn = torch.rand(1, dtype=torch.float64, generator=self._generator) * total
        # Rounding may make it the total, which is that of the last token with a probability, and of those behind it.
        position = torch.searchsorted(sums_N, drawn, right=True).minimum(torch.searchsorted(sums_N, total))
        return int(tokens_N[position])


def likelier(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """It returns the probabilities of the tokens that may be drawn, float64, as they are in the whole vocabulary after
    `top_k`, and the tokens: the likeliest first, of equals the first.

    Raises:
        CheckpointError: the logits are no numbers.
    """
    logits_V = logits_V.detach().double()
    if not logits_V.max().isfinite():  # NaN is the largest of all; the logits of padding are -inf
        raise CheckpointError("the model computes no numbers (NaN or infinity); choose another checkpoint")
    if not sampling.temperature:
        return torch.ones(1, dtype=torch.float64), logits_V.cpu().argmax()[None]
    logits_N, tokens_N = (part.cpu() for part in logits_V.sort(descending=True, stable=True))
    logits_N, tokens_N = logits_N[: sampling.top_k], tokens_N[: sampling.top_k]
    probabilities_N = ((logits_N - logits_N[0]) / sampling.temperature).softmax(0)
    if sampling.top_p == 1:
        return probabilities_N, tokens_N
    count = 1 + int((probabilities_N.cumsum(0)[:-1] < sampling.top_p).sum())
    return probabilities_N[:count], tokens_N[:count]
