"""Gradients by layer: their norm, and their variance between micro-batches."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from parallel.statistics import sample_variance
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, by_layer, squares_by_layer


class GradientNormProbe(Probe):
    """l2 norm of the averaged gradient of each layer, before clipping."""

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._owners = model.owners()

    def due(self, occasion: ProbeStep) -> bool:
        return occasion.dense

    def local(self) -> Tensor:
        return mean_squares(self._model, self._owners)

    def finish(self, slots: Tensor) -> Measures:
        return Measures(by_layer("gradient_norm", self._model, slots.sqrt().tolist()))


def mean_squares(model: ProbedModel, owners: dict[int, int]) -> Tensor:
    """This rank's share of the squared norm of the averaged gradient, by layer."""
    held = [held for held in model.gate.gradients() if model.gate.counts(held.parameter)]
    layers = [owners[id(one.parameter)] for one in held]
    squares = squares_by_layer(model, layers, [one.gradient for one in held])
    return squares if model.gate.sharded else squares / model.mesh.data.size


class GradientVarianceProbe(Probe):
    """Trace of the covariance of a micro-batch's gradient, estimated from those of the step, by layer and in total.

    The n = data ranks x micro-batches gradients g_i are of what each micro-batch adds to the mean loss, times n, so
    that their mean is the step's gradient: (mean_i |g_i|^2 - |mean_i g_i|^2) n / (n - 1). The definition is the same
    in every layout. (Over the averages of data ranks, each of m micro-batches, one would estimate an m-th of it.)

    Each g_i is seen by a hook as it enters the sum. Gradients are of the weights that layers compute with: under
    sigmaReparam of What. Slots are the sums of |g_i|^2, then the squared norms of the mean, by layer.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._owners = model.owners()
        self._handles: list[RemovableHandle] = []
        self._norms: list[tuple[int, Tensor]] = []
        self._tied = TiedGradients(model)

    def due(self, occasion: ProbeStep) -> bool:
        return occasion.dense and len(occasion.batches) * self._model.mesh.data.size > 1

    def begin(self, occasion: ProbeStep) -> None:
        self._micro_batches = len(occasion.batches)
        self._handles = [
            parameter.register_hook(partial(self._look, self._owners[id(parameter)]))
            for parameter in self._counted()
        ]
        self._handles += self._tied.begin(occasion)

    def _counted(self) -> Iterator[nn.Parameter]:
        """Each parameter once; copies on other tensor ranks have the same gradients."""
        seen = set()
        for _, layer in self._model.layers:
            for parameter in layer.parameters():
                sharded = getattr(parameter, "tensor_model_parallel", False)
                if id(parameter) not in seen and (sharded or self._model.mesh.tensor.first):
                    seen.add(id(parameter))
                    yield parameter

    def _look(self, layer: int, gradient: Tensor) -> None:
        self._norms.append((layer, torch.linalg.vector_norm(gradient, dtype=torch.float32)))

    def gradients_averaged(self) -> None:
        for handle in self._handles:
            handle.remove()
        layers, norms = [layer for layer, _ in self._norms], [norm for _, norm in self._norms]
        squares = squares_by_layer(self._model, layers, norms)
        squares[0] += 2 * self._tied.products()
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


class TiedGradients:
    """Inner products of the two parts of a tied table's gradients, which lie on different pipeline stages.

    The table's gradient on a micro-batch is e + h, e from the embedding on the first stage and h from the head on
    the last, and |e + h|^2 = |e|^2 + |h|^2 + 2 <e, h>. Only rows of tokens that occur in the micro-batch count, for the
    others e is zero. The first stage sends them over the control group, in one message a step.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        pipeline = model.mesh.pipeline
        apart = model.config.model.tied_embeddings and pipeline.size > 1
        self._takes_part = apart and (pipeline.first or pipeline.last)
        self._rows: list[Tensor] = []

    def begin(self, occasion: ProbeStep) -> list[RemovableHandle]:
        """Look at the gradients of the micro-batches to come, until the handles are removed."""
        self._occasion = occasion
        self._rows = []
        if not self._takes_part:
            return []
        _, layer = self._model.layers[0 if self._model.mesh.pipeline.first else -1]
        assert isinstance(layer.weight, nn.Parameter)
        return [layer.weight.register_hook(self._look)]

    def _look(self, gradient_WD: Tensor) -> None:
        tokens = self._occasion.batches[len(self._rows)].inputs[0].unique()
        tokens = tokens - self._model.mesh.tensor.rank * len(gradient_WD)
        own = tokens[(tokens >= 0) & (tokens < len(gradient_WD))].to(gradient_WD.device)
        self._rows.append(gradient_WD[own].float().cpu())

    def products(self) -> Tensor:
        """Sum of <e, h> over micro-batches, on the last stage; zero elsewhere."""
        total = torch.zeros((), dtype=torch.float64, device=self._model.mesh.device)
        if not self._takes_part:
            return total
        mesh, rows = self._model.mesh, torch.cat(self._rows)
        if mesh.pipeline.first:
            dist.send(rows, mesh.pipeline.ranks[-1], group=mesh.control)
            return total
        theirs = torch.empty_like(rows)
        dist.recv(theirs, mesh.pipeline.ranks[0], group=mesh.control)
        return total + (rows * theirs).sum(dim=-1).double().sum()
