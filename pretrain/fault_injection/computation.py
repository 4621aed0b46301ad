"""Faults of computation hook into what a step computes, or change the learning rate of an update.

B  samples in a micro-batch, S  tokens in a sequence, W  rows of the vocabulary on this rank
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from parallel.mesh import ParallelMesh
from pretrain.backend.setup import local_layers
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.fault import PlannedFault
from pretrain.fault_injection.plan import FaultPlan

LEARNING_RATE_FACTOR = 20.0


class HookFault(PlannedFault, ABC):
    """Its hook is there during the steps of the plan and gone afterwards."""

    def __init__(self, plan: FaultPlan, config: RunConfig, mesh: ParallelMesh) -> None:
        super().__init__(plan, config, mesh)
        self._handles: list[RemovableHandle] = []

    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self.plan.covers(attempt) and self.strikes():
            self._handles.append(self.hook(engine))

    @abstractmethod
    def strikes(self) -> bool:
        """It says whether this rank has the fault."""

    @abstractmethod
    def hook(self, engine: TrainEngine) -> RemovableHandle:
        """Have the fault happen until the handle is removed."""


class NanGradient(HookFault):
    """A gradient of the last rank is NaN."""

    def strikes(self) -> bool:
        return self.mesh.rank == self.mesh.world_size - 1

    def hook(self, engine: TrainEngine) -> RemovableHandle:
        parameter = next(engine.module.parameters())
        return parameter.register_hook(lambda gradient: gradient * float("nan"))


class InfiniteLoss(HookFault):
    """All predictions but that of token 0 are impossible; gradients stay finite.

    Where the last layer has no table of tokens, all that it returns is infinite.
    """

    def strikes(self) -> bool:
        return self.mesh.pipeline.last and self.mesh.data.last

    def hook(self, engine: TrainEngine) -> RemovableHandle:
        _, head = local_layers(engine.module)[-1]
        outline = self.config.model.outline(self.config.data)
        spoil = self._forbid if outline.layers[-1].table else self._inflate
        return head.register_forward_hook(spoil)

    def _forbid(self, head: nn.Module, arguments: Any, logits_BSW: Tensor) -> Tensor | None:
        if not head.training:
            return None
        impossible = torch.ones(logits_BSW.shape[-1], dtype=torch.bool, device=logits_BSW.device)
        impossible[0] = not self.mesh.tensor.first
        return logits_BSW.masked_fill(impossible, float("-inf"))

    def _inflate(self, head: nn.Module, arguments: Any, outputs: Any) -> Any:
        if not head.training:
            return None
        if isinstance(outputs, tuple):
            return (outputs[0] + float("inf"), *outputs[1:])
        return outputs + float("inf")


class HighLearningRate(PlannedFault):
    """The learning rate is many times what it should be."""

    def learning_rate(self, update: int, rate: float) -> float:
        return rate * LEARNING_RATE_FACTOR if self.plan.covers(update + 1) else rate
