"""A model is loaded into one process here, from tensors of any origin, by their names in the whole model.

It computes as training does: the same layers in the same dtypes, so that a loss that validation has told comes out
again. No DeepSpeed and no launcher is needed, and no memory beyond the weights in the compute dtype and one tensor.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from data_pipeline.config import DataConfig
from data_pipeline.shown import shown
from parallel.initialization import Normal
from parallel.mesh import ParallelMesh
from parallel.pipeline import SequentialLayers
from parallel.rng import RandomStreams
from parallel.spectral import find_spectral_layers, materialise
from pretrain.errors import CheckpointError
from pretrain.models.context import Materials
from pretrain.models.outline import Outline
from pretrain.runtime.kernels import Kernels, detect_kernels
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.registry import TASKS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
"""Compute dtypes by `precision.dtype`, and one that no run has."""
LISTED = 5
"""Names that a message lists."""


class TensorSource(Protocol):
    """It is where tensors of a whole model come from, such as a checkpoint or an exported folder."""

    @property
    def names(self) -> Collection[str]:
        """These are the names of all tensors, each that of a layer in the outline, a dot, and its name in the layer."""

    def shape(self, name: str) -> tuple[int, ...]:
        """It returns the shape of a tensor."""

    def read(self, name: str) -> Tensor:
        """It returns a tensor, whole."""


@dataclass(frozen=True)
class LoadedModel:
    """It is a whole model in one process, ready to be evaluated and to generate."""

    settings: TaskConfig
    data: DataConfig
    mesh: ParallelMesh
    layers: SequentialLayers
    """On the device of the mesh, in the compute dtype, without dropout."""


def load_model(
    settings: TaskConfig, data: DataConfig, dtype: str, source: TensorSource, mesh: ParallelMesh
) -> LoadedModel:
    """It builds the model of a task in one process and fills it from `source`; `dtype` is the run's precision.
    Reparametrised weights are folded.

    Raises:
        CheckpointError: the tensors are not those of this model.
    """
    model = load_parameters(settings, data, dtype, source, mesh)
    spectral = find_spectral_layers(model.layers)
    materialise(spectral)
    for layer in spectral:
        layer.fold()
    return model


def load_parameters(
    settings: TaskConfig,
    data: DataConfig,
    dtype: str,
    source: TensorSource,
    mesh: ParallelMesh,
    kernels: Kernels | None = None,
) -> LoadedModel:
    """It does what `load_model` does, but leaves reparametrised weights as they are trained: to be run, the model must
    be given its What. Kernels are those that fit this machine, or these. It raises the same."""
    outline = settings.outline(data)
    check_tensors(outline, source)
    layers = build_layers(settings, data, mesh, seed=None, kernels=kernels)
    place(layers, DTYPES[dtype], mesh.device)
    fill(layers, outline, source)
    return LoadedModel(settings, data, mesh, layers.eval())


def check_tensors(outline: Outline, source: TensorSource) -> None:
    """It compares names and shapes of tensors with those of a model, of which nothing is built yet: settings that no
    tensors go with may ask for any number of layers, and for more memory than there is.

    Raises:
        CheckpointError: there are others than the model has, by name or shape.
    """
    expected, names = outline.tensors, set(source.names)
    pairs = (("lacks", sorted(expected.keys() - names)), ("has", sorted(names - expected.keys())))
    if faults := [f"it {verb} {listed(found)}" for verb, found in pairs if found]:
        raise CheckpointError(f"these are not the tensors of the model: {'; '.join(faults)}")
    for name, size in expected.items():
        if (shape := source.shape(name)) != size.shape:
            raise CheckpointError(f"{name}: has shape {shape}, but {size.shape} in this model")


def build_layers(
    settings: TaskConfig,
    data: DataConfig,
    mesh: ParallelMesh,
    *,
    seed: int | None,
    kernels: Kernels | None = None,
) -> SequentialLayers:
    """It builds the layers of a model with the initial weights of a seed; none: without memory for them (`place`)."""
    streams, kernels = RandomStreams(0, mesh), kernels or detect_kernels()
    task = TASKS[settings.kind]
    if seed is not None:
        return SequentialLayers(task.layers(settings, data, Materials(mesh, streams, kernels, seed)))
    with torch.device("meta"):
        return SequentialLayers(task.layers(settings, data, UnfilledMaterials(mesh, streams, kernels, 0)))


class Unfilled(Normal):
    """Initial weights that nobody will see are not drawn: that takes minutes for large models."""

    def rows(self, start: int, stop: int, num_rows: int, num_columns: int) -> Tensor:
        """It returns memory as it is."""
        return torch.empty(stop - start, num_columns)


class UnfilledMaterials(Materials):
    """With these materials layers are built to be filled."""

    def normal(self, name: str, std: float) -> Normal:
        """It returns initial weights that are not drawn."""
        return Unfilled(self.seed, name, std)


def place(layers: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """It gives memory on a device to layers that have none. As under DeepSpeed (0.19.8) parameters have the compute
    dtype, those of norms, too, and buffers, such as those of sigmaReparam, stay in fp32."""
    placed: dict[int, nn.Parameter] = {}  # tied layers share one
    for module in layers.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty_like(parameter, dtype=dtype, device=device)
            setattr(module, name, placed.setdefault(id(parameter), nn.Parameter(memory)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=device))


def named_tensors(layers: SequentialLayers, outline: Outline) -> Iterator[tuple[str, Tensor]]:
    """It yields all parameters and buffers under their names in the whole model; tied ones under the first alone."""
    for size, layer in zip(outline.layers, layers.layers, strict=True):
        for name, tensor in layer.state_dict().items():
            if isinstance(tensor, Tensor) and not (size.tied_to and name == "weight"):
                yield f"{size.name}.{name}", tensor


@torch.no_grad()
def fill(layers: SequentialLayers, outline: Outline, source: TensorSource) -> None:
    """It copies all tensors into a model, one at a time. Raises CheckpointError where one cannot be read."""
    for name, target in named_tensors(layers, outline):
        target.copy_(source.read(name))


def listed(names: list[str]) -> str:
    """It names the first of these names, and counts the rest."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(map(shown, names[:LISTED])) + more
