"""This module tells how the weights of every parameter are distributed, whatever part of them a rank holds.

What is summed are the fp32 weights that the optimizer moves. Rows of vocabulary padding, which are zero, take part.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.probes.probe import ProbedModel

PIECE = 2**22
"""Elements that are looked at together."""

Name = tuple[int, str]
"""Index of the layer in the whole list, name of the parameter in it."""


@dataclass(frozen=True)
class Sums:
    """They sum up the elements that a rank holds of one parameter."""

    elements: int = 0
    finite: int = 0
    total: float = 0.0
    """Of those that are finite, like the two below."""
    squares: float = 0.0
    largest: float = 0.0
    """By absolute value."""

    @classmethod
    def of(cls, weights: Tensor) -> "Sums":
        """It sums in pieces: a device that is about to give up has little memory left."""
        return sum((cls._of_piece(piece) for piece in weights.reshape(-1).split(PIECE)), start=cls())

    @classmethod
    def _of_piece(cls, weights: Tensor) -> "Sums":
        finite = weights[torch.isfinite(weights)].double()
        return cls(
            elements=weights.numel(),
            finite=finite.numel(),
            total=finite.sum().item(),
            squares=finite.square().sum().item(),
            largest=finite.abs().max().item() if finite.numel() else 0.0,
        )

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.elements + other.elements,
            self.finite + other.finite,
            self.total + other.total,
            self.squares + other.squares,
            max(self.largest, other.largest),
        )

    def as_row(self) -> dict[str, float]:
        """It returns mean, standard deviation and largest absolute value of what is finite."""
        count = max(self.finite, 1)
        mean = self.total / count
        return {
            "elements": self.elements,
            "not_finite": self.elements - self.finite,
            "mean": mean,
            "std": max(self.squares / count - mean * mean, 0.0) ** 0.5,
            "max_abs": self.largest,
        }


@torch.no_grad()
def local_sums(model: ProbedModel) -> dict[Name, Sums]:
    """It returns what this rank adds to the statistics: of replicas only the first counts."""
    names: dict[int, Name] = {}
    for index, layer in model.layers:
        for name, parameter in layer.named_parameters():
            names.setdefault(id(parameter), (index, name))
    speaks = model.gate.masters_sharded or model.mesh.data.first
    sums: dict[Name, Sums] = defaultdict(Sums)
    for held in model.gate.masters() if speaks else ():
        if model.gate.counts(held.parameter):
            sums[names[id(held.parameter)]] += Sums.of(held.weight.detach())
    return dict(sums)


def layer_rows(parts: Iterable[Mapping[Name, Sums]], layers: tuple[str, ...]) -> list[dict[str, object]]:
    """It returns one row for each parameter of the whole model, by layer and name; `layers` has the names by index."""
    whole: dict[Name, Sums] = defaultdict(Sums)
    for part in parts:
        for name, sums in part.items():
            whole[name] += sums
    return [
        {"layer": layers[index], "parameter": name, **sums.as_row()}
        for (index, name), sums in sorted(whole.items(), key=lambda entry: entry[0])
    ]
