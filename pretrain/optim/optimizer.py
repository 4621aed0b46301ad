"""This is the half of an optimizer that needs torch; the other one is its section of the configuration (`config`).

An optimizer is a file of its own; nothing outside of this room names it. Engine, estimates, probes and watchdog know
what stands here and in `OptimizerConfig`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from pretrain.optim.config import OptimizerConfig
from pretrain.optim.groups import Groups

Config = TypeVar("Config", bound=OptimizerConfig)

NOT_SETTINGS = ("params", "lr", "step")
"""Keys of a parameter group that change while a run goes on: the engine sets the learning rate, and apex counts steps
there."""


CountedIn = Literal["tensors", "groups", "nothing"]


@dataclass(frozen=True)
class Counting:
    """It says where optimizers count their updates: under `step` in the state of each tensor, as torch's do, in each
    parameter group, as apex's do, or not at all. Checkpoints hold one number, for whichever goes on."""

    weights: CountedIn = "nothing"
    gammas: CountedIn = "nothing"


class Optimizer(ABC, Generic[Config]):
    """It makes the optimizers of one kind, for the weights and for the gammas of sigmaReparam.

    Each has learning rate 0 at first: the engine sets it before every update.
    """

    def __init__(self, config: Config) -> None:
        """It raises ConfigurationError where what the configuration asks for is not to be had on this machine."""
        self.config = config

    @property
    @abstractmethod
    def description(self) -> str:
        """It says in a few words which implementation is used, for the start of a run."""

    @property
    def counting(self) -> Counting:
        """It says where the optimizers that it makes count; here they do not."""
        return Counting()

    @abstractmethod
    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """It returns the optimizer of a rank's weights."""

    def gamma_optimizer(self, gammas: Sequence[Tensor]) -> torch.optim.Optimizer:
        """It returns the optimizer of scalars in fp32: the same method without weight decay."""
        return self.build([{"params": list(gammas), "weight_decay": 0.0}])


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """It returns the settings of an optimizer that was just made, by group: they follow from the configuration."""
    return [
        {key: value for key, value in group.items() if key not in NOT_SETTINGS}
        for group in optimizer.param_groups
    ]
