"""LARS (You et al. 2017, arXiv 1708.03888) is momentum SGD whose gradients are as long as a share of their matrix."""

import torch
from torch import Tensor

from pretrain.optim.config import LARSConfig
from pretrain.optim.foreach import Group
from pretrain.optim.groups import Groups
from pretrain.optim.layerwise import LayerwiseOptimizer, Norms, layerwise_groups
from pretrain.optim.optimizer import Optimizer


class LARS(Optimizer[LARSConfig]):
    """As in timm and our SGD, and not in the paper, the momentum does not know the learning rate. eta is the trust
    coefficient, and the ratio of biases, gains and gammas is 1:

    ratio = eta |w| / (|g| + wd |w| + epsilon),  b <- momentum b + ratio (g + wd w),  w <- w - lr b.
    """

    @property
    def description(self) -> str:
        """It says whose LARS is used."""
        return "LARS by torch's foreach operations"

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """It returns the optimizer, of matrices and of what has one dimension."""
        return _LARS(layerwise_groups(groups), self.config)


class _LARS(LayerwiseOptimizer):
    def __init__(self, groups: Groups, config: LARSConfig) -> None:
        names = ("momentum", "trust_coefficient", "epsilon", "weight_decay")
        super().__init__(groups, {"lr": 0.0, **{name: getattr(config, name) for name in names}})

    def move(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        norms = self.norms(weights, gradients) if group["layerwise"] else []
        if group["weight_decay"]:
            torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
        if group["layerwise"]:
            self.scale(weights, gradients, [ratio(norm, group) for norm in norms])
        if group["momentum"]:
            momenta = self.kept("momentum_buffer", weights)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, gradients)
            gradients = momenta
        torch._foreach_add_(weights, gradients, alpha=-group["lr"])


def ratio(norms: Norms, group: Group) -> float:
    """It returns what a matrix's gradient, decay included, is multiplied with; 1 where either norm is 0, as in timm."""
    weight, gradient = norms
    if not (weight > 0 and gradient > 0):
        return 1.0
    length = gradient + group["weight_decay"] * weight + group["epsilon"]
    return float(group["trust_coefficient"] * weight / length)
