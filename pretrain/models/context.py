"""This is what every layer of a model is built with."""

from dataclasses import dataclass
from functools import cached_property

from torch import nn

from parallel.initialization import Normal
from parallel.mesh import ParallelMesh
from parallel.rng import RandomStreams
from parallel.spectral import SpectralConfig
from pretrain.models.compiler import Compiler
from pretrain.models.config import TransformerConfig
from pretrain.models.depth import Depth, single_stack
from pretrain.runtime.kernels import UNFUSED, Kernels


@dataclass(frozen=True)
class Materials:
    """Layers of every kind are built with this rank's place, its random streams, kernels and the run's seed."""

    mesh: ParallelMesh
    streams: RandomStreams
    kernels: Kernels
    seed: int
    compiler: Compiler | None = None
    """It compiles blocks that are trained; none: they run as they are."""

    def normal(self, name: str, std: float) -> Normal:
        """It returns initial weights N(0, std^2) of the matrix called `name`."""
        return Normal(self.seed, name, std)


@dataclass(frozen=True)
class LayerContext:
    """The context holds the settings of a stack of Transformer blocks, and makes its weights and norms."""

    config: TransformerConfig
    materials: Materials
    stack: Depth | None = None
    """Where the stack is one of several, what follows from their depths; none: it is the only one."""

    @cached_property
    def depth(self) -> Depth:
        """It tells what follows from the number of blocks."""
        return self.stack or single_stack(self.config.num_layers)

    @property
    def mesh(self) -> ParallelMesh:
        """It tells this rank's place."""
        return self.materials.mesh

    @property
    def streams(self) -> RandomStreams:
        """Dropout masks come from these streams."""
        return self.materials.streams

    @property
    def compiler(self) -> Compiler | None:
        """It compiles the blocks; none: they run as they are."""
        return self.materials.compiler

    @property
    def residual_factor(self) -> float:
        """This is how many times the residual stream is added to what comes out of a branch."""
        return self.depth.alpha if self.config.norm_placement == "deepnorm" else 1.0

    def weight(self, name: str) -> Normal:
        """It returns initial weights N(0, init_std^2) of the table or matrix called `name`, outside of blocks."""
        return self.normal(name, self.config.init_std)

    def matrix(
        self, name: str, shape: tuple[int, int], *, residual: bool = False, asks: bool = False
    ) -> Normal:
        """It returns initial weights of a matrix of a block; see `matrix_std`."""
        return self.normal(name, self.matrix_std(shape, residual=residual, asks=asks))

    def matrix_std(self, shape: tuple[int, int], *, residual: bool = False, asks: bool = False) -> float:
        """It returns the standard deviation of the initial entries of a block's matrix, rows x columns.

        As in GPT-2 it is init_std, and for residual projections init_std / sqrt(branches), so that the stream does not
        grow with depth (Radford et al. 2019, 2.3). With DeepNorm it is that of Xavier's rule, sqrt(2 / (rows +
        columns)), times beta where the matrix does not make queries or keys (`asks`); see `pretrain.models.depth`.
        """
        if self.config.norm_placement == "deepnorm":
            return self.gain(asks=asks) * (2 / sum(shape)) ** 0.5
        std = self.config.init_std
        return std / self.depth.branches**0.5 if residual else std

    def gain(self, *, asks: bool) -> float:
        """It returns what DeepNorm multiplies initial weights by; otherwise 1."""
        return self.depth.beta if self.config.norm_placement == "deepnorm" and not asks else 1.0

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
        kernels = (
            UNFUSED if self.compiler else self.materials.kernels
        )  # a graph fuses norms with what is around them
        norm_class = kernels.norm(config.normalization, bias=config.bias)
        return make_norm(norm_class, config.hidden_size, config.normalization_epsilon, bias=config.bias)


def make_norm(norm_class: type[nn.Module], size: int, epsilon: float, *, bias: bool) -> nn.Module:
    """It makes a norm layer with gain 1 and, for LayerNorm, an optional bias 0."""
    if issubclass(norm_class, nn.LayerNorm):
        return norm_class(size, eps=epsilon, bias=bias)
    return norm_class(size, eps=epsilon)
