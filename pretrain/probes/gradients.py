"""These probes measure gradients by layer: their norm, and their variance between micro-batches."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from parallel.statistics import norms_of, pieces_of, sample_variance
from pretrain.probes.probe import (
    Measures,
    Probe,
    ProbedModel,
    ProbeStep,
    by_layer,
    squares_by_layer,
    sums_by_layer,
)
from pretrain.probes.ties import TiedGradients


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
    held = [held for held in model.gate.gradients() if model.gate.counts(held.parameter)]
    layers = [owners[id(one.parameter)] for one in held]
    squares = squares_by_layer(model, layers, [one.gradient for one in held])
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
        self._handles: list[RemovableHandle] = []
        self._norms: list[tuple[int, Tensor]] = []
        self._tied = TiedGradients(model)

    def due(self, step: ProbeStep) -> bool:
        return step.full and len(step.batches) * self._model.mesh.data.size > 1

    def begin(self, step: ProbeStep) -> None:
        self._micro_batches = len(step.batches)
        self._handles = [
            parameter.register_hook(partial(self._look, self._owners[id(parameter)]))
            for parameter in self._counted()
        ]
        self._handles += self._tied.begin(step)

    def _counted(self) -> Iterator[nn.Parameter]:
        """It yields each parameter once; copies on other tensor ranks have the same gradients."""
        seen = set()
        for _, layer in self._model.layers:
            for parameter in layer.parameters():
                sharded = getattr(parameter, "tensor_model_parallel", False)
                if id(parameter) not in seen and (sharded or self._model.mesh.tensor.first):
                    seen.add(id(parameter))
                    yield parameter

    def _look(self, layer: int, gradient: Tensor) -> None:
        self._norms += ((layer, norm) for norm in norms_of(pieces_of(gradient)))

    def gradients_averaged(self) -> None:
        for handle in self._handles:
            handle.remove()
        layers, norms = [layer for layer, _ in self._norms], [norm for _, norm in self._norms]
        values = torch.stack(norms).double().square() if norms else self._model.zeros(0)
        squares = sums_by_layer(self._model, layers, values)
        for layer, product in self._tied.products():
            squares[layer] += 2 * product
        # DeepSpeed has divided each loss by the number of micro-batches.
        self._slots = torch.cat((squares * self._micro_batches**2, mean_squares(self._model, self._owners)))
        self._norms = []

    def local(self) -> Tensor:
        return self._slots

    def finish(self, slots: Tensor) -> Measures:
        count = self._micro_batches * self._model.mesh.data.size
        sums, squares = slots.view(2, -1)
        variance = sample_variance(sums / count, squares, count)
        total = variance.sum().item()
        layers = by_layer("gradient_variance", self._model, variance.tolist())
        return Measures({"gradient_variance": total, **layers})
