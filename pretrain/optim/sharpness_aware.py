"""The ascent of sharpness-aware minimisation moves weights to where the loss rises fastest within a distance rho.

    SAM   (Foret et al. 2021, arXiv 2010.01412, equation 2)   e = rho g / |g|
    ASAM  (Kwon et al. 2021, arXiv 2102.11600, equation 7)    e = rho w^2 g / |w g|,   by element

The norms are those of all parameters together. ASAM scales every parameter, biases and gains included.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_LENGTH = 1e-12
"""It is added to a norm, so that a gradient of zero moves nothing."""


def ascent_factor(rho: float, squared: float) -> float:
    """It returns what g, or w^2 g, is multiplied with, for the squared norm of g, or of w g, over all ranks."""
    return rho / (squared**0.5 + SMALLEST_LENGTH)


class Copies:
    """They are copies of tensors that move for a while."""

    @torch.no_grad()
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._before = [torch.empty_like(tensor) for tensor in tensors]
        self._copy(self._before, self._tensors)

    @torch.no_grad()
    def put_back(self) -> None:
        """It makes the tensors what they were, to the bit."""
        self._copy(self._tensors, self._before)

    @staticmethod
    def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
        if targets:  # torch refuses lists without
            torch._foreach_copy_(targets, sources)


@torch.no_grad()
def ascend(weights: list[Tensor], gradients: list[Tensor], factor: float, *, adaptive: bool) -> None:
    """It moves weights in place; launches do not go by tensor."""
    if not weights:
        return
    if adaptive:
        squares = torch._foreach_mul(weights, weights)
        torch._foreach_addcmul_(weights, squares, gradients, value=factor)
    else:
        torch._foreach_add_(weights, gradients, alpha=factor)
