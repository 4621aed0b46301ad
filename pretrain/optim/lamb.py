"""LAMB (You et al. 2020, arXiv 1904.00962) is AdamW whose update is as long as its matrix, times the learning rate."""

import torch
from torch import Tensor

from pretrain.optim.config import LAMBConfig
from pretrain.optim.foreach import Group
from pretrain.optim.groups import Groups
from pretrain.optim.layerwise import LayerwiseOptimizer, Norms, layerwise_groups
from pretrain.optim.optimizer import Counting, Optimizer


class LAMB(Optimizer[LAMBConfig]):
    """Its phi is the identity. The ratio of biases, gains and gammas, which do not decay, is 1, as in timm:

    u = m / (sqrt(v) + epsilon) + wd w,  w <- w - lr |w| / |u| u;  m and v are AdamW's, with its bias correction.
    """

    @property
    def description(self) -> str:
        """It says whose LAMB is used."""
        return "LAMB by torch's foreach operations"

    @property
    def counting(self) -> Counting:
        """It counts as torch's AdamW does."""
        return Counting("tensors", "tensors")

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """It returns the optimizer, of matrices and of what has one dimension."""
        return _LAMB(layerwise_groups(groups), self.config)


class _LAMB(LayerwiseOptimizer):
    def __init__(self, groups: Groups, config: LAMBConfig) -> None:
        names = ("beta1", "beta2", "epsilon", "weight_decay")
        super().__init__(groups, {"lr": 0.0, **{name: getattr(config, name) for name in names}})

    def move(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        self._adam(group, weights, gradients)
        updates = gradients
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["layerwise"]:
            self.scale(weights, updates, [ratio(norms) for norms in self.norms(weights, updates)])
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _adam(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """It makes gradients the updates of Adam, without learning rate."""
        beta1, beta2 = group["beta1"], group["beta2"]
        steps = self._counts(weights)
        first, second = self.kept("exp_avg", weights), self.kept("exp_avg_sq", weights)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        torch._foreach_copy_(gradients, second)
        torch._foreach_sqrt_(gradients)
        torch._foreach_div_(gradients, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(gradients, group["epsilon"])
        torch._foreach_mul_(gradients, [1 - beta1**step for step in steps])
        torch._foreach_reciprocal_(gradients)
        torch._foreach_mul_(gradients, first)

    def _counts(self, weights: list[Tensor]) -> list[float]:
        """It counts this update, of each tensor, and returns the counts."""
        counts = [self.state[weight].setdefault("step", torch.tensor(0.0)) for weight in weights]
        torch._foreach_add_(counts, 1)
        return [count.item() for count in counts]


def ratio(norms: Norms) -> float:
    """It returns what a matrix's update is multiplied with; 1 where either norm is 0, as in timm."""
    return norms.weight / norms.update if norms.weight > 0 and norms.update > 0 else 1.0
