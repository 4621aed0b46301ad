"""AdamW is torch's fused one, or apex's where it is installed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.errors import ConfigurationError, Problem
from pretrain.optim.config import AdamWConfig
from pretrain.optim.groups import Groups
from pretrain.optim.optimizer import Counting, Optimizer
from pretrain.runtime.kernels import APEX, why_not_apex

if APEX.usable and torch.cuda.is_available():
    from apex.optimizers import FusedAdam


class AdamW(Optimizer[AdamWConfig]):
    """The method is that of Loshchilov and Hutter 2019, arXiv 1711.05101."""

    def __init__(self, config: AdamWConfig) -> None:
        """It raises ConfigurationError where apex is asked for and not usable."""
        super().__init__(config)
        reason = why_not_apex(APEX, torch.cuda.is_available())
        if config.implementation == "apex" and reason:
            rule = f"apex is not usable here: {reason}"
            problem = Problem("optimizer.implementation", rule, '"auto" works', '"apex"')
            raise ConfigurationError("the optimizer cannot be had", [problem])
        self._apex = not reason and config.implementation != "torch"

    @property
    def description(self) -> str:
        """It says whose AdamW is used."""
        return "apex FusedAdam" if self._apex else "torch fused AdamW"

    @property
    def counting(self) -> Counting:
        """torch's count for each tensor, apex's for a group."""
        return Counting("groups" if self._apex else "tensors", "tensors")

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """It returns torch's AdamW or apex's FusedAdam, which decouples the weight decay by default."""
        config = self.config
        betas = (config.beta1, config.beta2)
        if self._apex:
            fused: torch.optim.Optimizer = FusedAdam(groups, lr=0.0, betas=betas, eps=config.epsilon)
            return fused
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.epsilon, fused=True)

    def gamma_optimizer(self, gammas: Sequence[Tensor]) -> torch.optim.Optimizer:
        """It returns torch's AdamW: gammas are few."""
        betas = (self.config.beta1, self.config.beta2)
        return torch.optim.AdamW(gammas, lr=0.0, betas=betas, eps=self.config.epsilon, weight_decay=0.0)
