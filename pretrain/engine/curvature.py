"""The largest eigenvalue of the Hessian of the loss is measured in any layout, between two steps.

A product with the Hessian is a difference of gradients at weights a little way off on either side, (g(w + e v) -
g(w - e v)) / 2 e: two passes of training, whose updates are withheld. Collectives and pipelines have no second
backward pass; this needs none. Vectors are laid out as the weights that the optimizer moves: a rank has its part.

On the way there the loss should change by what counts in fp32 and not by what it is not quadratic in; along v it does
by e^2 v^T H v / 2. So e is STEP over the root of the last curvature.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from data_pipeline.batches import Batch
from parallel.eigenvalues import Eigenvalue, Search, largest_eigenvalues, norm
from parallel.mesh import ParallelMesh
from pretrain.backend.schedule import Consult
from pretrain.backend.transfer import MicroBatch
from pretrain.backend.update_gate import UpdateGate
from pretrain.engine.displacement import Displacement, Slope
from pretrain.engine.reparametrization import Reparametrization
from pretrain.engine.targets import normalise
from pretrain.optim.sharpness_aware import Copies

STEP = 0.001
SMALLEST_CURVATURE = 1e-4
LOOK = Search(count=1, vectors=4, tolerance=3e-3, products=16)
"""A look ends at that relative residual, which the next one, from this one's vector, begins with."""

Pass = Callable[[int, Sequence[MicroBatch], Consult], None]
"""It passes through micro-batches as step number so and so does, and withholds the update."""


class Curvature:
    """It keeps the vector that it has found for the next look; training rests on nothing of it."""

    def __init__(
        self,
        module: nn.Module,
        run_pass: Pass,
        gate: UpdateGate,
        reparametrization: Reparametrization,
        mesh: ParallelMesh,
    ) -> None:
        self._module = module
        self._run_pass = run_pass
        self._gate = gate
        self._reparametrization = reparametrization
        self._displacement = Displacement(gate, reparametrization)
        self._mesh = mesh
        self._vector: Tensor | None = None
        self._scale = 1.0
        """The last curvature."""
        self._slopes: list[Slope] = []
        """What vectors are laid out by, those that this rank speaks for first."""
        self.products = 0
        """Taken so far."""

    def look(self, batches: Sequence[Batch], alive: Callable[[], None]) -> Eigenvalue | None:
        """It returns the largest eigenvalue over these micro-batches and those of the other ranks, with masks that are
        the same at every look; none where gradients are not finite. All is put back to the bit. `alive` is called
        before every product.

        Raises:
            BatchesMissing: a rank, not necessarily this one, has no batches.
        """
        scaled, _ = normalise(self._mesh, batches)
        passes = [(batch.inputs, batch.labels) for batch in scaled]
        buffers = Copies(list(self._module.buffers()))  # such as running means
        try:
            gradient = self._gradient(passes)  # most of it lies along the largest eigenvectors
            start = gradient if self._vector is None else self._vector
            if not 0 < (length := norm(gradient, self._inner)) < math.inf:
                raise FloatingPointError("no gradient, or none that is finite")

            def product(vector: Tensor) -> Tensor:
                alive()
                return self._product(vector, passes)

            if self._vector is None:
                first = product(gradient / length)
                self._scale = max(norm(first, self._inner), SMALLEST_CURVATURE)
            (found,) = largest_eigenvalues(product, start, LOOK, self._inner)
        except FloatingPointError:
            self._vector, self._scale = None, 1.0
            return None
        finally:
            buffers.put_back()
        self._vector, self._scale = found.vector_P, max(abs(found.value), SMALLEST_CURVATURE)
        return found

    def _product(self, vector: Tensor, passes: Sequence[MicroBatch]) -> Tensor:
        """It returns H v for a v of length 1."""
        self.products += 1
        step = STEP / math.sqrt(self._scale)
        above, below = (self._gradient_beside(vector, length, passes) for length in (step, -step))
        return (above - below) / (2 * step)

    def _gradient_beside(self, vector: Tensor, length: float, passes: Sequence[MicroBatch]) -> Tensor:
        self._displacement.move(self._along(vector), length)
        try:
            return self._gradient(passes)
        finally:
            self._displacement.put_back()

    def _gradient(self, passes: Sequence[MicroBatch]) -> Tensor:
        """It returns this rank's part of the gradient, in the order of `_along`."""
        parts: list[Tensor] = []

        def consult(loss: Tensor) -> None:
            self._reparametrization.pull_back()
            self._slopes = sorted(self._displacement.slopes(), key=self._speaks, reverse=True)
            parts.extend(slope.gradient for slope in self._slopes)
            gammas = [gamma.grad for gamma in self._reparametrization.gammas]
            parts.extend(
                gradient for gradient in gammas if gradient is not None
            )  # each has one, says no type
            parts[:] = [torch.cat(parts)]

        self._run_pass(0, passes, consult)
        return parts[0]

    def _along(self, vector: Tensor) -> list[Slope]:
        """It makes a vector slopes, and gradients of gammas: first what this rank speaks for among the tensor ranks and
        stages, behind it what others do, at last the gammas."""
        gammas = self._reparametrization.gammas
        tensors = [*(slope.weight for slope in self._slopes), *gammas]
        pieces = vector.split([tensor.numel() for tensor in tensors])
        slopes = [slope._replace(gradient=piece) for slope, piece in zip(self._slopes, pieces, strict=False)]
        for gamma, piece in zip(gammas, pieces[len(slopes) :], strict=True):
            gamma.grad = piece
        return slopes

    def _speaks(self, slope: Slope) -> bool:
        return self._gate.counts(slope.parameter)

    def _inner(self, vectors: Tensor, vector: Tensor) -> Tensor:
        """It returns inner products over all ranks, the same bytes on each; every weight counts once."""
        counted = sum(slope.weight.numel() for slope in self._slopes if self._speaks(slope))
        gammas = len(vector) - sum(slope.weight.numel() for slope in self._slopes)
        data = self._mesh.data.size
        own = vectors[:, :counted] @ vector[:counted] / (1 if self._gate.masters_sharded else data)
        own = own.double()
        if gammas:
            shared = vectors[:, -gammas:] @ vector[-gammas:]
            own += shared.double() / (self._mesh.tensor.size * data)
        return self._mesh.agree_sum(own.cpu(), patient=True)
