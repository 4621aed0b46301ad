"""A theorem says how far AdamW can move a weight, and serves as an alarm without false positives.

After t updates AdamW moves a weight by `lr m / (sqrt(v) + epsilon)`, beside its decay, where

    m = (1 - b1) / (1 - b1^t) sum_i b1^i g_i,        v = (1 - b2) / (1 - b2^t) sum_i b2^i g_i^2,

summed over i = 0 .. t-1, the newest gradient first. Write `b1^i g_i = (b1 / sqrt(b2))^i (sqrt(b2)^i g_i)` and let
`r = b1^2 / b2 < 1`. By Cauchy-Schwarz

    (sum_i b1^i g_i)^2  <=  sum_i r^i  sum_i b2^i g_i^2,    so that

    m^2 / v  <=  (1 - b1)^2 / ((1 - b2) (1 - r))  x  (1 - r^t) (1 - b2^t) / (1 - b1^t)^2.

The last factor is at most 1, because `r^t b2^t = b1^(2t)` makes `r^t + b2^t >= 2 b1^t`, and tends to 1. So
`|m| / sqrt(v) <= B = (1 - b1) / sqrt((1 - b2) (1 - r))` in every update, and no smaller constant would do: gradients
in proportion to `(b1 / b2)^i` come arbitrarily close.

A row's TEV, the standard deviation of its entries, is 1-Lipschitz in their root mean square change. So one update
changes it by at most `lr B`, the decay aside, and likewise the mean and the maximum over rows. Where more is seen it
was not the optimizer, but memory, a bad load or a foreign write.

This holds for one learning rate for all weights, and while gradients are what the moments have seen: not for
optimizers of another kind. For `b1^2 >= b2` the sum over r grows without bound and nothing can be said.
"""

import math


def adamw_update_bound(beta1: float, beta2: float) -> float:
    """It returns the largest |update| of a weight in units of the learning rate, decay aside: B of this module's text.

    It is 1.165 for (0.9, 0.95), 1.698 for (0.9, 0.98), 7.270 for (0.9, 0.999); infinite where `beta1**2 >= beta2`.
    """
    if beta1 == 0:
        return 1 / math.sqrt(1 - beta2)
    if beta1**2 >= beta2:
        return math.inf
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))
