"""For a while weights are elsewhere: they are moved in place, whatever DeepSpeed's wrapper, and put back to the bit."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from pretrain.backend.pieces import counted
from pretrain.backend.update_gate import UpdateGate
from pretrain.engine.reparametrization import Reparametrization
from pretrain.optim.sharpness_aware import Copies, ascend


class Slope(NamedTuple):
    """It is what this rank moves of one parameter, and the gradient there: both flat, without padding."""

    parameter: nn.Parameter
    weight: Tensor
    gradient: Tensor


class Displacement:
    """It moves what the optimizer moves, gammas included; what the model computes with follows."""

    def __init__(self, gate: UpdateGate, reparametrization: Reparametrization) -> None:
        self._gate = gate
        self._reparametrization = reparametrization
        self._copies: Copies | None = None

    def slopes(self) -> Iterator[Slope]:
        """After a last backward it pairs what this rank holds of weights with their gradients, of which it may hold
        more."""
        gradients = {id(given.parameter): given for given in self._gate.gradients()}
        for held in self._gate.masters():
            given, count = gradients.get(id(held.parameter)), counted(held.parameter, held.weight, held.start)
            if given is None or not count:
                continue
            first = held.start - given.start
            weight = held.weight.detach().view(-1)[:count]
            gradient = given.gradient.reshape(-1)[first : first + count]
            yield Slope(held.parameter, weight, gradient.to(weight.dtype))

    def move(self, slopes: Sequence[Slope], factor: float, *, adaptive: bool = False) -> None:
        """It moves weights by a factor along slopes, and gammas along their gradients; all ranks together."""
        moved = {id(held.moved): held.moved for held in self._gate.masters()}
        self._copies = Copies(list(moved.values()))
        weights, gradients = [one.weight for one in slopes], [one.gradient for one in slopes]
        ascend(weights, gradients, factor, adaptive=adaptive)
        self._gate.renew()
        self._reparametrization.ascend(factor, adaptive=adaptive)

    def put_back(self) -> None:
        """Weights are what they were before they were moved, if they were."""
        if self._copies:
            self._copies.put_back()
            self._copies = None
            self._gate.renew()
            self._reparametrization.put_back()
