"""A model's tensors by name, held in memory, in place of a checkpoint."""

from collections.abc import Collection, Mapping

from torch import Tensor

from parallel.mesh import ParallelMesh
from parallel.power_step import initialise
from parallel.spectral import find_spectral_layers
from pretrain.config.run import RunConfig
from pretrain.inference.model import LoadedModel, build_layers, load_model, named_tensors


class Held:
    """It gives tensors by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @property
    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def initial_tensors(config: RunConfig, mesh: ParallelMesh, seed: int = 1, factor: float = 1.0) -> Held:
    """It returns the tensors of a model with initial weights; `factor` makes larger what it computes. Under
    sigmaReparam gammas and sigmas are those of the weights, and then moved apart."""
    layers = build_layers(config.model, config.data, mesh, seed=seed)
    if spectral := find_spectral_layers(layers):
        initialise(spectral, mesh.tensor.group)
        for layer in spectral:
            layer.norms.gamma_K.mul_(1.5)
    tensors = dict(named_tensors(layers, config.model.outline(config.data)))
    for name, tensor in tensors.items():
        if name.endswith("weight") and tensor.dim() == 2:
            tensor.mul_(factor)
    return Held(tensors)


def loaded_model(config: RunConfig, mesh: ParallelMesh, seed: int = 1, factor: float = 1.0) -> LoadedModel:
    """It returns that model in one process."""
    source = initial_tensors(config, mesh, seed, factor)
    return load_model(config.model, config.data, config.precision.dtype, source, mesh)
