"""In a training run, the parts of sigmaReparam happen around an update, and its gammas have an optimizer.

Gammas are scalars in fp32, also in a bf16 model, and every rank of a stage knows their gradient. So they are
buffers with an optimizer of their own: of the weights' kind, without weight decay, clipped by the global norm as all
else.

K   matrices stacked in one layer
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parallel.mesh import ParallelMesh
from parallel.power_step import initialise, measure, power_step
from parallel.spectral import SpectralLayer, find_spectral_layers, materialise
from parallel.spectral_gradient import GradientPiece, pull_back
from pretrain.backend.update_gate import UpdateGate
from pretrain.optim.optimizer import Optimizer
from pretrain.optim.sharpness_aware import Copies, ascend


class Reparametrization:
    """It looks after all reparametrised matrices of this rank."""

    def __init__(
        self, module: nn.Module, mesh: ParallelMesh, gate: UpdateGate, optimizer: Optimizer[Any]
    ) -> None:
        """`optimizer` makes the one of the gammas."""
        self._mesh = mesh
        self._gate = gate
        self._layers = find_spectral_layers(module)
        self._by_weight = {id(layer.weight): layer for layer in self._layers}
        self._active = [layer for layer in self._layers if layer.norms.active]
        self._gammas = joined_gammas(self._active)
        self.optimizer = optimizer.gamma_optimizer(self.gammas) if self.gammas else None
        """It moves the gammas, all of this rank in one tensor; none: there are none."""
        self._copies: Copies | None = None
        """Gammas and sigmas as they were before an ascent."""
        self.residual = initialise(self._layers, mesh.tensor.group) if self._layers else 0.0
        """How far the first vectors are from singular vectors (largest relative residual)."""

    @property
    def gammas(self) -> list[Tensor]:
        """They are all gammas that are moved, as one tensor, if there are any."""
        return [self._gammas] if len(self._gammas) else []

    @property
    def _gradients(self) -> list[Tensor]:
        """They are those of the gammas, after `pull_back`."""
        return [gamma.grad for gamma in self.gammas if gamma.grad is not None]

    def pull_back(self) -> Tensor:
        """After the last backward it makes gradients of What those of W; returns this rank's share of |dgamma|^2."""
        if not self.optimizer:
            return self._share(())
        pieces = [
            GradientPiece(self._by_weight[id(held.parameter)], held.gradient, held.start)
            for held in self._gate.gradients()
            if id(held.parameter) in self._by_weight
        ]
        group = self._mesh.stage.group if self._gate.sharded else self._mesh.tensor.group
        self._gammas.grad = pull_back(pieces, self._active, group)
        self._gate.gradients_changed()
        return self._share(self._gradients)

    def squared_norm(self) -> Tensor:
        """It pulls back, and returns this rank's share of the squared gradient norm, gammas included."""
        gammas = self.pull_back()
        return self._gate.squared_norm() + gammas

    def scaled_squares(self) -> Tensor:
        """It returns this rank's share of |gamma dgamma|^2, the squared length of an adaptive ascent."""
        pairs = zip(self.gammas, self._gradients, strict=True)
        return self._share([gamma * gradient for gamma, gradient in pairs])

    def _share(self, tensors: Sequence[Tensor]) -> Tensor:
        """It returns this rank's share of the squares: all tensor and data ranks have the same gammas, which count
        once."""
        if not tensors:
            return torch.zeros((), dtype=torch.float64, device=self._mesh.device)
        return torch.cat(list(tensors)).double().square().sum() / (
            self._mesh.tensor.size * self._mesh.data.size
        )

    def ascend(self, factor: float, *, adaptive: bool) -> None:
        """Once the weights have ascended, gammas do so by their gradients, and sigma = v^T W u and What follow. u and v
        stay where they are: in the gradients that the ascent goes by they are constants."""
        if not self.optimizer:
            return
        sigmas = [layer.norms.sigma_K for layer in self._layers]
        self._copies = Copies([*self.gammas, *sigmas])
        ascend(self.gammas, self._gradients, factor, adaptive=adaptive)
        measure(self._layers, self._mesh.tensor.group)
        self.materialise()

    def put_back(self) -> None:
        """Once the weights are back, gammas, sigma and What are as before the ascent, to the bit."""
        if self._copies:
            self._copies.put_back()
            self._copies = None
            self.materialise()

    def after_update(self, learning_rate: float, gradient_norm: float, clipping: float) -> None:
        """Once the weights have moved it moves gamma, takes a power step and renews What."""
        if not self._layers:
            return
        if self.optimizer:
            self._update_gammas(
                learning_rate, min(1.0, clipping / (gradient_norm + 1e-6)) if clipping else 1.0
            )
        power_step(self._layers, self._mesh.tensor.group)
        self.materialise()

    def materialise(self) -> None:
        """It renews What from W, sigma and gamma, also after a load."""
        materialise(self._layers)

    def _update_gammas(self, learning_rate: float, factor: float) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            for gamma in group["params"]:
                gamma.grad.mul_(factor)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """It returns the state of gamma's optimizer; all else is in the module's buffers."""
        return self.optimizer.state_dict() if self.optimizer else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It restores that state after the weights have been."""
        if self.optimizer:
            self.optimizer.load_state_dict(state)
        self.materialise()


@torch.no_grad()
def joined_gammas(layers: Sequence[SpectralLayer]) -> Tensor:
    """It returns the gammas of all layers as one tensor, of which those of each are a view from now on."""
    if not layers:
        return torch.zeros(0)
    gammas = torch.cat([layer.norms.gamma_K for layer in layers])
    pieces = gammas.split([len(layer.norms.gamma_K) for layer in layers])
    for layer, piece in zip(layers, pieces, strict=True):
        layer.norms.gamma_K = piece
    return gammas
