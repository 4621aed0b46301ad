"""Sharpness-aware minimisation takes a step in two passes over the same micro-batches, with the same masks.

After the first one the weights go to where the loss rises; its update is withheld, as that of a vetoed step. After the
second one they are put back from a copy, to the bit, and all goes as in any step: norm, probes, judge, update. Nothing
of it is state, and no wrapper of DeepSpeed's or pipeline knows of it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.mesh import ParallelMesh
from parallel.statistics import squared_norms
from pretrain.backend.pieces import counted
from pretrain.backend.update_gate import UpdateGate
from pretrain.engine.reparametrization import Reparametrization
from pretrain.engine.targets import share_of_loss
from pretrain.optim.config import SharpnessAwareConfig
from pretrain.optim.sharpness_aware import Copies, ascend, ascent_factor


class FirstPass(NamedTuple):
    """It is what a first pass has found at the weights themselves, over all ranks."""

    loss: float
    gradient_norm: float


class Slope(NamedTuple):
    """It is what this rank moves of one parameter, and the gradient there: both flat, without padding."""

    parameter: nn.Parameter
    weight: Tensor
    gradient: Tensor


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
        self._copies: Copies | None = None

    def due(self, step: int) -> bool:
        """It says whether a step takes two passes."""
        return self._config.applies(step)

    @torch.no_grad()
    def ascend(self, loss: Tensor) -> FirstPass:
        """After the last backward of the first pass it moves the weights to where the loss rises, unless loss or norm
        are not finite: then the second pass will find the same. `loss` is this rank's, as `Consult` has it."""
        squared = self._reparametrization.squared_norm()
        slopes = list(slopes_of(self._gate))
        scaled = self._scaled_squares(slopes) if self._config.adaptive else squared
        own = torch.stack((squared, scaled)).tolist()
        sums = self._mesh.agree_sum(
            torch.tensor([share_of_loss(self._mesh, loss), *own], dtype=torch.float64)
        )
        found, squared_norm, squared_length = sums.tolist()
        if all(map(math.isfinite, (found, squared_norm, squared_length))):
            self._move(slopes, ascent_factor(self._config.rho, squared_length))
        return FirstPass(found, squared_norm**0.5)

    def put_back(self) -> None:
        """After the last backward of the second pass, and once its gradients are those of the parameters, the weights
        are what they were."""
        if self._copies:
            self._copies.put_back()
            self._copies = None
            self._gate.renew()
            self._reparametrization.put_back()

    def _scaled_squares(self, slopes: list[Slope]) -> Tensor:
        """It returns this rank's share of |w g|^2."""
        counting = [slope for slope in slopes if self._gate.counts(slope.parameter)]
        total = self._reparametrization.scaled_squares()
        if not counting:
            return total
        products = torch._foreach_mul([one.weight for one in counting], [one.gradient for one in counting])
        copies = 1 if self._gate.masters_sharded else self._mesh.data.size
        return total + squared_norms(products).sum() / copies

    def _move(self, slopes: list[Slope], factor: float) -> None:
        moved = {id(held.moved): held.moved for held in self._gate.masters()}
        self._copies = Copies(list(moved.values()))
        weights, gradients = [one.weight for one in slopes], [one.gradient for one in slopes]
        ascend(weights, gradients, factor, adaptive=self._config.adaptive)
        self._gate.renew()
        self._reparametrization.ascend(factor, adaptive=self._config.adaptive)


def slopes_of(gate: UpdateGate) -> Iterator[Slope]:
    """It pairs what this rank holds of weights with their gradients, of which it may hold more."""
    gradients = {id(given.parameter): given for given in gate.gradients()}
    for held in gate.masters():
        given, count = gradients.get(id(held.parameter)), counted(held.parameter, held.weight, held.start)
        if given is None or not count:
            continue
        first = held.start - given.start
        weight = held.weight.detach().view(-1)[:count]
        gradient = given.gradient.reshape(-1)[first : first + count]
        yield Slope(held.parameter, weight, gradient.to(weight.dtype))
