"""The base of the optimizers that are written here: operations on lists of tensors, whose launches do not go by matrix.

A gradient that was handed over is spent: its memory becomes that of the update.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]
"""A parameter group as torch's optimizers have it."""


class ForeachOptimizer(torch.optim.Optimizer):
    """It moves the tensors of a group together."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there are gradients before a step
        """It moves all tensors that have a gradient, which is not one afterwards."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:  # ZeRO-3 has one group at a time filled
                self.move(group, weights, [weight.grad for weight in weights])

    @abstractmethod
    def move(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """It moves these tensors of a group."""

    def kept(self, name: str, weights: list[Tensor]) -> list[Tensor]:
        """It returns the state of this name of each tensor, which begins with zeros."""
        for weight in weights:
            if name not in self.state[weight]:
                self.state[weight][name] = torch.zeros_like(weight)
        return [self.state[weight][name] for weight in weights]
