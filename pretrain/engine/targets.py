"""DeepSpeed's mean over micro-batches and data ranks becomes the mean per target over all ranks here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.batches import Batch
from parallel.mesh import ParallelMesh


class BatchesMissing(Exception):
    """A rank came to a step without batches: its data failed. All ranks raise it, before any computation."""


def normalise(mesh: ParallelMesh, batches: Sequence[Batch]) -> tuple[list[Batch], float]:
    """It scales target weights so that DeepSpeed's mean over micro-batches and data ranks is the mean per target.

    It returns the scaled batches and the sum of all weights, over all data ranks.

    Raises:
        BatchesMissing: a rank, not necessarily this one, has no batches.
    """
    own = sum(batch.target_weight for batch in batches) if speaks_for_batch(mesh) else 0.0
    sums = mesh.agree_sum(torch.tensor([own, not batches], dtype=torch.float64), patient=True)
    weight, missing = sums.tolist()
    if missing:
        raise BatchesMissing
    factor = len(batches) * mesh.data.size / weight if weight else 0.0
    return [batch.scaled(factor) for batch in batches], weight


def speaks_for_batch(mesh: ParallelMesh) -> bool:
    """It tells whether this rank counts the samples of its replica: one does."""
    return mesh.model.first


def speaks_for_outputs(mesh: ParallelMesh) -> bool:
    """It tells whether this rank reports what came out of its replica: all tensor ranks of the last stage have it."""
    return mesh.pipeline.last and mesh.tensor.first


def share_of_loss(mesh: ParallelMesh, loss: Tensor) -> float:
    """It returns what this rank adds to the global mean loss."""
    return loss.item() / mesh.data.size if speaks_for_outputs(mesh) else 0.0
