"""Sharpness-aware minimisation takes a step in two passes over the same micro-batches, with the same masks.

After the first one the weights go to where the loss rises; its update is withheld, as that of a vetoed step. After the
second one they are put back from a copy, to the bit, and all goes as in any step: norm, probes, judge, update. Nothing
of it is state, and no wrapper of DeepSpeed's or pipeline knows of it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.mesh import ParallelMesh
from parallel.statistics import squared_norms
from pretrain.backend.update_gate import UpdateGate
from pretrain.engine.displacement import Displacement, Slope
from pretrain.engine.reparametrization import Reparametrization
from pretrain.engine.targets import share_of_loss
from pretrain.optim.config import SharpnessAwareConfig
from pretrain.optim.sharpness_aware import ascent_factor


class FirstPass(NamedTuple):
    """It is what a first pass has found at the weights themselves, over all ranks."""

    loss: float
    gradient_norm: float


class SharpnessAware:
    """It moves the weights before a second pass and back after it."""

    def __init__(
        self,
        config: SharpnessAwareConfig,
        mesh: ParallelMesh,
        gate: UpdateGate,
        reparametrization: Reparametrization,
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._gate = gate
        self._reparametrization = reparametrization
        self._displacement = Displacement(gate, reparametrization)

    def due(self, step: int) -> bool:
        """It says whether a step takes two passes."""
        return self._config.applies(step)

    @torch.no_grad()
    def ascend(self, loss: Tensor) -> FirstPass:
        """After the last backward of the first pass it moves the weights to where the loss rises, unless loss or norm
        are not finite: then the second pass will find the same. `loss` is this rank's, as `Consult` has it."""
        squared = self._reparametrization.squared_norm()
        slopes = list(self._displacement.slopes())
        scaled = self._scaled_squares(slopes) if self._config.adaptive else squared
        own = torch.stack((squared, scaled)).tolist()
        sums = self._mesh.agree_sum(
            torch.tensor([share_of_loss(self._mesh, loss), *own], dtype=torch.float64)
        )
        found, squared_norm, squared_length = sums.tolist()
        if all(map(math.isfinite, (found, squared_norm, squared_length))):
            length = ascent_factor(self._config.rho, squared_length)
            self._displacement.move(slopes, length, adaptive=self._config.adaptive)
        return FirstPass(found, squared_norm**0.5)

    def put_back(self) -> None:
        """After the last backward of the second pass, and once its gradients are those of the parameters, the weights
        are what they were."""
        self._displacement.put_back()

    def _scaled_squares(self, slopes: list[Slope]) -> Tensor:
        """It returns this rank's share of |w g|^2."""
        counting = [slope for slope in slopes if self._gate.counts(slope.parameter)]
        total = self._reparametrization.scaled_squares()
        if not counting:
            return total
        products = torch._foreach_mul([one.weight for one in counting], [one.gradient for one in counting])
        copies = 1 if self._gate.masters_sharded else self._mesh.data.size
        return total + squared_norms(products).sum() / copies
