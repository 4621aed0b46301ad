"""These probes measure gradients by layer: their norm, and their variance between micro-batches."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from parallel.stacks import at_once
from parallel.statistics import norms_of, pieces_of, sample_variance
from pretrain.probes.probe import (
    Measures,
    Probe,
    ProbedModel,
    ProbeStep,
    by_layer,
    sums_by_layer,
)
from pretrain.probes.ties import TiedGradients

HELD = 2**16
"""Elements of a gradient up to which it waits to be measured with others. Autograd copies a gradient that somebody
holds where it would have kept it as the first of a sum, which of small ones is cheaper than a launch for each."""


class GradientNormProbe(Probe):
    """It measures the l2 norm of the averaged gradient of each layer, before clipping."""

    of_gradients = True

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._owners = model.owners()

    def due(self, step: ProbeStep) -> bool:
        return step.full

    def local(self) -> Tensor:
        return mean_squares(self._model, self._owners)

    def finish(self, slots: Tensor) -> Measures:
        return Measures(by_layer("gradient_norm", self._model, slots.sqrt().tolist()))


def mean_squares(model: ProbedModel, owners: dict[int, int]) -> Tensor:
    """It returns this rank's share of the squared norm of the averaged gradient, by layer."""
    found = model.gate.squares()
    squares = sums_by_layer(model, [owners[id(one)] for one in found.parameters], found.values)
    return squares if model.gate.sharded else squares / model.mesh.data.size


class GradientVarianceProbe(Probe):
    """It estimates the trace of the covariance of a micro-batch's gradient from the step's, by layer and in total.

    The n = data ranks x micro-batches gradients g_i are of what each micro-batch adds to the mean loss, times n, so
    that their mean is the step's gradient: (mean_i |g_i|^2 - |mean_i g_i|^2) n / (n - 1). The definition is the same
    in every layout. (Over the averages of data ranks, each of m micro-batches, one would estimate an m-th of it.)

    Each g_i is seen by a hook as it enters the sum. Gradients are of the weights that layers compute with: under
    sigmaReparam of What. Slots are the sums of |g_i|^2, then the squared norms of the mean, by layer.
    """

    of_gradients = True

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._owners = model.owners()
        self._counted = list(counted(model))
        self._at_once = at_once(model.mesh.device)
        self._handles: list[RemovableHandle] = []
        self._tied = TiedGradients(model)
        self._forget()

    def _forget(self) -> None:
        self._layers: list[int] = []
        """Of each norm, and then of each gradient that waits."""
        self._norms: list[Tensor] = []
        self._waiting: list[Tensor] = []
        """Gradients that are to be measured, of so many elements."""
        self._elements = 0

    def due(self, step: ProbeStep) -> bool:
        return step.full and len(step.batches) * self._model.mesh.data.size > 1

    def begin(self, step: ProbeStep) -> None:
        self._micro_batches = len(step.batches)
        self._forget()
        self._handles = [
            parameter.register_hook(partial(self._look, self._owners[id(parameter)]))
            for parameter in self._counted
        ]
        self._handles += self._tied.begin(step)

    def _look(self, layer: int, gradient: Tensor) -> None:
        elements = gradient.numel()
        pieces = pieces_of(gradient) if elements > HELD else (gradient,)
        self._waiting += pieces
        self._layers += (layer,) * len(pieces)
        self._elements += elements
        if elements > HELD or self._elements > self._at_once:
            self._measure()

    def _measure(self) -> None:
        """It measures the gradients that wait, in one launch on a device."""
        if self._waiting:
            self._norms.append(torch.stack(list(norms_of(self._waiting))))
            self._waiting, self._elements = [], 0

    def gradients_averaged(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._measure()
        values = torch.cat(self._norms).double().square() if self._norms else self._model.zeros(0)
        squares = sums_by_layer(self._model, self._layers, values)
        for layer, product in self._tied.products():
            squares[layer] += 2 * product
        # DeepSpeed has divided each loss by the number of micro-batches.
        self._slots = torch.cat((squares * self._micro_batches**2, mean_squares(self._model, self._owners)))
        self._forget()

    def local(self) -> Tensor:
        return self._slots

    def finish(self, slots: Tensor) -> Measures:
        count = self._micro_batches * self._model.mesh.data.size
        sums, squares = slots.view(2, -1)
        variance = sample_variance(sums / count, squares, count)
        total = variance.sum().item()
        layers = by_layer("gradient_variance", self._model, variance.tolist())
        return Measures({"gradient_variance": total, **layers})


def counted(model: ProbedModel) -> Iterator[nn.Parameter]:
    """It yields each parameter once; copies on other tensor ranks have the same gradients."""
    seen = set()
    for _, layer in model.layers:
        for parameter in layer.parameters():
            sharded = getattr(parameter, "tensor_model_parallel", False)
            if id(parameter) not in seen and (sharded or model.mesh.tensor.first):
                seen.add(id(parameter))
                yield parameter
