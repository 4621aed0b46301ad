"""SGD with momentum is torch's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.optim.config import SGDConfig
from pretrain.optim.groups import Groups
from pretrain.optim.optimizer import Optimizer


class SGD(Optimizer[SGDConfig]):
    """SGD (Sutskever et al. 2013) has the form of torch, whose momentum does not know the learning rate.

    b <- momentum b + g + wd w,  w <- w - lr b;  Nesterov: w <- w - lr (g + wd w + momentum b).
    """

    @property
    def description(self) -> str:
        """It says whose SGD is used."""
        return "torch fused SGD"

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """It returns torch's fused SGD."""
        config = self.config
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, fused=True)

    def gamma_optimizer(self, gammas: Sequence[Tensor]) -> torch.optim.Optimizer:
        """It returns an SGD with the same momentum and no decay."""
        config = self.config
        return torch.optim.SGD(gammas, lr=0.0, momentum=config.momentum, nesterov=config.nesterov)
