"""The Hessian of a model's loss is known by its products with vectors, exact, in one process.

It is that of the mean validation loss of some batches, over all that training moves: the parameters, and under
sigmaReparam W and gamma of every matrix, with the singular vectors constant, which is how a step differentiates them
and what SAM ascends in. (Sharpness depends on that choice: What, and with it the loss, is the same for W and 2 W, while
second derivatives by W shrink to a quarter.)

Products are those of Pearlmutter (1994): the gradient of <gradient, v>, by a backward pass through the backward pass.
Kernels that cannot be differentiated twice are left out: norms are torch's, attention is its plain formula. In one
process all of ours can be; collectives inside of a backward pass, of tensor-parallel ranks, would not be seen.

P  numbers that training moves
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_pipeline.batches import Batch
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from parallel.mesh import ParallelMesh
from parallel.spectral import find_spectral_layers
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.inference.model import DTYPES, LoadedModel, TensorSource, load_parameters
from pretrain.runtime.kernels import Kernels
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.registry import TASKS

PLAIN = Kernels(fused_norms=False, description="torch, to be differentiated twice")


class LossHessian:
    """It multiplies vectors (P,) by the Hessian of a model's loss."""

    def __init__(
        self,
        settings: TaskConfig,
        data: DataConfig,
        dtype: str,
        source: TensorSource,
        mesh: ParallelMesh,
        batches: Iterable[Batch],
    ) -> None:
        """It loads a model as `load_model` does, to compute in fp32 or in fp64; `batches` are kept.

        Raises:
            CheckpointError: the tensors are not those of this model.
            DataError: no target counts.
        """
        self.model = load_parameters(settings, data, dtype, source, mesh, PLAIN)
        self.model.layers.to(DTYPES[dtype])  # buffers, too
        self._loss_of = TASKS[settings.kind].validation_loss(settings, mesh)
        self._spectral = [layer for layer in find_spectral_layers(self.model.layers) if layer.norms.active]
        self._gammas = [layer.norms.gamma_K.requires_grad_() for layer in self._spectral]
        self._leaves = [*self.model.layers.parameters(), *self._gammas]
        self._batches = [on_device(batch, self.model) for batch in batches if batch.target_weight]
        self.targets = sum(weight for _, _, weight in self._batches)
        """What the loss is a mean of."""
        if not self.targets:
            raise DataError(
                "there is no target that a loss could be of: the data is empty, or all its samples are damaged"
            )

    def zeros(self) -> Tensor:
        """It returns a vector (P,) on the device and in the precision of the model: all parameters of its layers, one
        after the other, and behind them the gammas."""
        return self._leaves[0].new_zeros(sum(leaf.numel() for leaf in self._leaves))

    @property
    def reparametrised(self) -> bool:
        """It tells whether derivatives are by W and gamma in place of the weights that the model computes with."""
        return bool(self._spectral)

    def loss(self) -> float:
        """It returns the mean loss of a target."""
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return sum(loss.item() for loss in self._losses())

    def __call__(self, vector_P: Tensor) -> Tensor:
        """It returns H v.

        Raises:
            CheckpointError: a second derivative is not finite.
            ConfigurationError: an operation of the model has none in torch.
        """
        parts = vector_P.split([leaf.numel() for leaf in self._leaves])
        directions = [part.view_as(leaf) for part, leaf in zip(parts, self._leaves, strict=True)]
        total_P = torch.zeros_like(vector_P)
        with sdpa_kernel(SDPBackend.MATH):
            for loss in self._losses():
                total_P += self._product(loss, directions)
        if not total_P.isfinite().all():
            raise CheckpointError(
                "a second derivative of the loss is not finite: weights or activations of this model overflow; take an "
                "earlier checkpoint (RUN@TAG)"
            )
        return total_P

    def _product(self, loss: Tensor, directions: Sequence[Tensor]) -> Tensor:
        gradients = torch.autograd.grad(loss, self._leaves, create_graph=True, materialize_grads=True)
        slope = torch.stack(
            [(each * way).sum() for each, way in zip(gradients, directions, strict=True)]
        ).sum()
        try:
            products = torch.autograd.grad(slope, self._leaves, materialize_grads=True)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            kind = self.model.settings.kind
            raise ConfigurationError(
                f"model.kind {kind}: its loss has no second derivative in torch ({error}); the Hessian of this kind of "
                "model cannot be taken"
            ) from error
        return torch.cat([product.flatten() for product in products])

    def _losses(self) -> Iterator[Tensor]:
        """It yields the share of each batch in the mean loss."""
        for inputs, labels, _ in self._batches:
            hats = {
                f"{layer.name}.weight": layer.norms.differentiable(layer.weight, gamma_K)
                for layer, gamma_K in zip(self._spectral, self._gammas, strict=True)
            }
            outputs = torch.func.functional_call(self.model.layers, hats, inputs)
            yield self._loss_of(outputs, labels) / self.targets


def on_device(batch: Batch, model: LoadedModel) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], float]:
    """It returns inputs, in the precision of the model where they are no whole numbers, labels and target weight."""
    device, dtype = model.mesh.device, next(model.layers.parameters()).dtype
    inputs = tuple(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in batch.inputs)
    return inputs, tuple(t.to(device) for t in batch.labels), batch.target_weight
