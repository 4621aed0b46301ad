"""Adagrad (Duchi et al. 2011, JMLR 12) divides a gradient by the root of the sum of all its squares so far."""

import torch
from torch import Tensor

from pretrain.optim.config import AdagradConfig
from pretrain.optim.foreach import ForeachOptimizer, Group
from pretrain.optim.groups import Groups
from pretrain.optim.optimizer import Optimizer


class Adagrad(Optimizer[AdagradConfig]):
    """It has the form of torch, without a decay of the learning rate of its own:

    g <- g + wd w,  s <- s + g^2,  w <- w - lr g / (sqrt(s) + epsilon).
    """

    @property
    def description(self) -> str:
        """It says whose Adagrad is used."""
        return "Adagrad by torch's foreach operations"

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """It returns the optimizer of a rank's weights."""
        return _Adagrad(groups, self.config)


class _Adagrad(ForeachOptimizer):
    """It is not torch's class: under ZeRO-1 and 2, DeepSpeed (0.19.8) puts another one in the place of that, whose
    learning rate nobody sets."""

    def __init__(self, groups: Groups, config: AdagradConfig) -> None:
        defaults = {"lr": 0.0, "epsilon": config.epsilon, "weight_decay": config.weight_decay}
        super().__init__(groups, defaults)

    def move(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        sums = self.kept("sum", weights)
        if group["weight_decay"]:
            torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
        torch._foreach_addcmul_(sums, gradients, gradients)
        lengths = torch._foreach_sqrt(sums)
        torch._foreach_add_(lengths, group["epsilon"])
        torch._foreach_addcdiv_(weights, gradients, lengths, -group["lr"])
