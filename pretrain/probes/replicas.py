"""This probe tells whether the copies of the tables (an embedding's, an untied head's) are the same by the bit.

W  rows of a table on this rank, D  hidden size
G  groups of ranks that hold the same rows: by table and tensor rank, C  copies in each
"""

import torch
from torch import Tensor

from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep
from pretrain.probes.table import weight_of

_MODULUS = 2**52
_BITS = {2: torch.int16, 4: torch.int32}


class ReplicaProbe(Probe):
    """It counts the groups whose copies differ, and names a rank whose copy does where most others agree.

    Copies are those of data ranks and, of a tied table under pipeline parallelism, of all stages that use it. With
    ZeRO-3 no rank has a table of its own. Every copy has a slot for its checksum, exact in float64.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._holders = [holders_of(model, table) for table in model.outline.tables]

    def due(self, step: ProbeStep) -> bool:
        return step.full

    def local(self) -> Tensor:
        mesh, parts = self._model.mesh, []
        for holders in self._holders:
            slots_GC = self._model.zeros(mesh.tensor.size, len(holders) * mesh.data.size)
            for place, layer in enumerate(holders.values()):
                if layer in self._model.local:
                    table_WD = weight_of(self._model.local[layer]).detach()
                    slots_GC[mesh.tensor.rank, place * mesh.data.size + mesh.data.rank] = checksum(table_WD)
            parts.append(slots_GC.view(-1))
        return torch.cat(parts)

    def finish(self, slots: Tensor) -> Measures:
        mesh, differ, odd = self._model.mesh, 0, None
        sizes = [len(holders) * mesh.data.size * mesh.tensor.size for holders in self._holders]
        for holders, sums in zip(self._holders, slots.split(sizes), strict=True):
            for tensor, sums_C in enumerate(sums.view(mesh.tensor.size, -1)):
                if (sums_C == sums_C[0]).all():
                    continue
                differ += 1
                copy = odd_one(sums_C)
                if odd is None and copy is not None:
                    odd = self._rank(list(holders), tensor, copy)
        found = {"replicas_differ": float(differ)}
        return Measures(found if odd is None else {**found, "replicas_odd_rank": float(odd)})

    def _rank(self, stages: list[int], tensor: int, copy: int) -> int:
        """It returns the global rank of a copy."""
        place, data = divmod(copy, self._model.mesh.data.size)
        return (stages[place] * self._model.mesh.data.size + data) * self._model.mesh.tensor.size + tensor


def holders_of(model: ProbedModel, table: int) -> dict[int, int]:
    """It returns the pipeline stages that have a copy of a table, each with a layer that uses it."""
    holders: dict[int, int] = {}
    for layer in model.outline.sharers(table):
        holders.setdefault(model.stage(layer), layer)
    return holders


def odd_one(sums_C: Tensor) -> int | None:
    """It returns the first copy that differs from more than half of all; none where no value has so many."""
    values, counts = sums_C.unique(return_counts=True)
    if 2 * counts.max() <= len(sums_C):
        return None
    return int((sums_C != values[counts.argmax()]).nonzero()[0].item())


def checksum(table_WD: Tensor) -> Tensor:
    """It returns a number below 2^52 that changes with every single bit, and where rows change places.

    Bit patterns are summed by row and rows weighted with odd numbers, modulo 2^52 throughout.
    """
    sums_W = table_WD.view(_BITS[table_WD.element_size()]).sum(dim=1, dtype=torch.int64)
    weights_W = 2 * torch.arange(len(sums_W), device=sums_W.device) + 1
    return (sums_W * weights_W).sum() % _MODULUS


def replicas_apply(model: ProbedModel) -> bool:
    """It says whether there are copies to compare, and that is asked for."""
    holders = [holders_of(model, table) for table in model.outline.tables]
    copies = max((len(stages) * model.mesh.data.size for stages in holders), default=0)
    return model.config.replicas and model.zero_stage < 3 and copies > 1
