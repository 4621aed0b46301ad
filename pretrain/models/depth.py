"""How deep the residual stream of a stack is decides its first weights, and under DeepNorm how much of it is kept.

DeepNorm is norm(alpha x + f(x)), with first weights of values, attention outputs and feed-forward that are beta times
those of Xavier's rule; those of queries and keys are Xavier's (Wang et al. 2022, arXiv 2203.00555, figure 2). In an
encoder-decoder the two stacks have factors of their own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Depth:
    """It holds what follows from the number of blocks."""

    branches: int
    """Residual branches of the stack."""
    alpha: float
    """DeepNorm's factor of the residual stream."""
    beta: float
    """DeepNorm's gain of initial weights."""


def single_stack(layers: int) -> Depth:
    """A stack by itself, of encoder or decoder: alpha = (2 N)^(1/4), beta = (8 N)^(-1/4) for N blocks."""
    return Depth(2 * layers, (2 * layers) ** 0.25, (8 * layers) ** -0.25)


def encoder_of(encoder: int, decoder: int) -> Depth:
    """The encoder in front of a decoder: alpha = 0.81 (N^4 M)^(1/16), beta = 0.87 (N^4 M)^(-1/16) for N blocks of the
    encoder and M of the decoder.

    The code that its authors published later, torchscale, has 1.15 = 1 / 0.87 in place of 0.87. Their bound of an
    update, which the factors of all stacks meet with equality, holds for 0.87.
    """
    both = (encoder**4 * decoder) ** (1 / 16)
    return Depth(2 * encoder, 0.81 * both, 0.87 / both)


def decoder_of(decoder: int) -> Depth:
    """The decoder behind an encoder: alpha = (3 M)^(1/4), beta = (12 M)^(-1/4) for M blocks. Each has three branches,
    of which one is cross-attention."""
    return Depth(3 * decoder, (3 * decoder) ** 0.25, (12 * decoder) ** -0.25)
