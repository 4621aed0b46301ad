"""The methods of optimizers are written plainly here, for one whole matrix or vector in float64.

Each takes the weight, its gradient, the learning rate, whether it is a matrix, and what it has kept; it returns the
weight afterwards.
"""

from typing import Any

import torch
from torch import Tensor

from pretrain.optim.config import AdagradConfig, LAMBConfig, LARSConfig, OptimizerConfig

Kept = dict[str, Any]


def moved(
    config: OptimizerConfig, weight: Tensor, gradient: Tensor, rate: float, kept: Kept, *, matrix: bool
) -> Tensor:
    """It takes one step of the configured method."""
    decay = config.weight_decay if matrix else 0.0
    if isinstance(config, LARSConfig):
        return weight - rate * lars(config, weight, gradient, decay, kept, matrix)
    if isinstance(config, LAMBConfig):
        return weight - rate * lamb(config, weight, gradient, decay, kept, matrix)
    assert isinstance(config, AdagradConfig)
    gradient = gradient + decay * weight
    kept["sum"] = kept.get("sum", 0.0) + gradient**2
    return weight - rate * gradient / (kept["sum"].sqrt() + config.epsilon)


def lars(
    config: LARSConfig, weight: Tensor, gradient: Tensor, decay: float, kept: Kept, matrix: bool
) -> Tensor:
    """You et al. 2017, equation 6, with the momentum of torch's SGD."""
    length = weight.norm()
    share = config.trust_coefficient * length / (gradient.norm() + decay * length + config.epsilon)
    update = (gradient + decay * weight) * (share if matrix and length * gradient.norm() > 0 else 1.0)
    kept["momentum"] = config.momentum * kept.get("momentum", 0.0) + update
    return torch.as_tensor(kept["momentum"])


def lamb(
    config: LAMBConfig, weight: Tensor, gradient: Tensor, decay: float, kept: Kept, matrix: bool
) -> Tensor:
    """You et al. 2020, algorithm 2, with phi(z) = z."""
    kept["step"] = kept.get("step", 0) + 1
    kept["m"] = config.beta1 * kept.get("m", 0.0) + (1 - config.beta1) * gradient
    kept["v"] = config.beta2 * kept.get("v", 0.0) + (1 - config.beta2) * gradient**2
    m, v = kept["m"] / (1 - config.beta1 ** kept["step"]), kept["v"] / (1 - config.beta2 ** kept["step"])
    update = m / (v.sqrt() + config.epsilon) + decay * weight
    return update * (weight.norm() / update.norm() if matrix and weight.norm() * update.norm() > 0 else 1.0)
