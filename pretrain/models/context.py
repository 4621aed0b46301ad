"""What every layer of a model is built with."""

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
    """What layers of every kind are built with: this rank's place, its random streams, kernels, the run's seed."""

    mesh: ParallelMesh
    streams: RandomStreams
    kernels: Kernels
    seed: int

    def normal(self, name: str, std: float) -> Normal:
        """Initial weights N(0, std^2) of the matrix called `name`."""
        return Normal(self.seed, name, std)


@dataclass(frozen=True)
class LayerContext:
    """Settings of a stack of Transformer blocks, and how its weights and norms are made."""

    config: TransformerConfig
    materials: Materials

    @property
    def mesh(self) -> ParallelMesh:
        """This rank's place."""
        return self.materials.mesh

    @property
    def streams(self) -> RandomStreams:
        """Where dropout masks come from."""
        return self.materials.streams

    def weight(self, name: str, *, residual: bool = False) -> Normal:
        """Initial weights of the matrix called `name`, as in GPT-2: N(0, std^2), residual projections with
        std / sqrt(2 layers), so that the residual stream does not grow with depth (Radford et al. 2019, 2.3).
        """
        std = self.config.init_std
        return self.normal(name, std / (2 * self.config.num_layers) ** 0.5 if residual else std)

    def normal(self, name: str, std: float) -> Normal:
        """Initial weights N(0, std^2) of the matrix called `name`."""
        return self.materials.normal(name, std)

    @property
    def spectral(self) -> SpectralConfig | None:
        """How the matrices of the blocks are reparametrised."""
        if self.config.reparametrization == "none":
            return None
        return SpectralConfig(
            self.config.reparametrization, self.config.gamma_init, self.config.sigma_vectors
        )

    def norm(self) -> nn.Module:
        """A normalization layer over the hidden size; the identity in a model without."""
        config = self.config
        if config.norm_placement == "none":
            return nn.Identity()
        norm_class = self.materials.kernels.norm(config.normalization, bias=config.bias)
        return make_norm(norm_class, config.hidden_size, config.normalization_epsilon, bias=config.bias)


def make_norm(norm_class: type[nn.Module], size: int, epsilon: float, *, bias: bool) -> nn.Module:
    """A norm layer with gain 1 and, for LayerNorm, an optional bias 0."""
    if issubclass(norm_class, nn.LayerNorm):
        return norm_class(size, eps=epsilon, bias=bias)
    return norm_class(size, eps=epsilon)
