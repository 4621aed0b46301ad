"""This is what every layer of a model is built with."""

from dataclasses import dataclass

from torch import nn

from parallel.initialization import Normal
from parallel.mesh import ParallelMesh
from parallel.rng import RandomStreams
from parallel.spectral import SpectralConfig
from pretrain.models.config import TransformerConfig
from pretrain.runtime.kernels import Kernels


@dataclass(frozen=True)
class Materials:
    """Layers of every kind are built with this rank's place, its random streams, kernels and the run's seed."""

    mesh: ParallelMesh
    streams: RandomStreams
    kernels: Kernels
    seed: int

    def normal(self, name: str, std: float) -> Normal:
        """It returns initial weights N(0, std^2) of the matrix called `name`."""
        return Normal(self.seed, name, std)


@dataclass(frozen=True)
class LayerContext:
    """The context holds the settings of a stack of Transformer blocks, and makes its weights and norms."""

    config: TransformerConfig
    materials: Materials

    @property
    def mesh(self) -> ParallelMesh:
        """It tells this rank's place."""
        return self.materials.mesh

    @property
    def streams(self) -> RandomStreams:
        """Dropout masks come from these streams."""
        return self.materials.streams

    def weight(self, name: str, *, residual: bool = False) -> Normal:
        """It returns initial weights of the matrix called `name`, as in GPT-2: N(0, std^2), residual projections with
        std / sqrt(2 layers), so that the residual stream does not grow with depth (Radford et al. 2019, 2.3).
        """
        std = self.config.init_std
        return self.normal(name, std / (2 * self.config.num_layers) ** 0.5 if residual else std)

    def normal(self, name: str, std: float) -> Normal:
        """It returns initial weights N(0, std^2) of the matrix called `name`."""
        return self.materials.normal(name, std)

    @property
    def spectral(self) -> SpectralConfig | None:
        """It says how the matrices of the blocks are reparametrised; none: they are not."""
        if self.config.reparametrization == "none":
            return None
        return SpectralConfig(
            self.config.reparametrization, self.config.gamma_init, self.config.sigma_vectors
        )

    def norm(self) -> nn.Module:
        """It makes a normalization layer over the hidden size, or the identity in a model without norms."""
        config = self.config
        if config.norm_placement == "none":
            return nn.Identity()
        norm_class = self.materials.kernels.norm(config.normalization, bias=config.bias)
        return make_norm(norm_class, config.hidden_size, config.normalization_epsilon, bias=config.bias)


def make_norm(norm_class: type[nn.Module], size: int, epsilon: float, *, bias: bool) -> nn.Module:
    """It makes a norm layer with gain 1 and, for LayerNorm, an optional bias 0."""
    if issubclass(norm_class, nn.LayerNorm):
        return norm_class(size, eps=epsilon, bias=bias)
    return norm_class(size, eps=epsilon)
