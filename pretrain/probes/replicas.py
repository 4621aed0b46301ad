"""Whether the copies of the embedding table (and of an untied head) are the same by the bit.

W  rows of a table on this rank, D  hidden size
G  groups of ranks that hold the same rows: by table and tensor rank, C  copies in each
"""

import torch
from torch import Tensor

from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep

_MODULUS = 2**52
_BITS = {2: torch.int16, 4: torch.int32}


class ReplicaProbe(Probe):
    """Counts the groups whose copies differ, and names a rank whose copy does where most others agree.

    Copies are those of data ranks and, of a tied table under pipeline parallelism, of the first and the last stage.
    With ZeRO-3 no rank has a table of its own. Every copy has a slot for its checksum, exact in float64.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        config, mesh = model.config.model, model.mesh
        head, last = len(model.names) - 1, mesh.pipeline.size - 1
        if config.tied_embeddings:
            self._holders = [[(0, 0), (head, last)][: 1 + (last > 0)]]
        else:
            self._holders = [[(0, 0)], [(head, last)]]
        """By table: layer and pipeline stage of each copy within a replica."""
        self._copies = len(self._holders[0]) * mesh.data.size

    def due(self, occasion: ProbeStep) -> bool:
        return occasion.dense

    def local(self) -> Tensor:
        mesh, layers = self._model.mesh, dict(self._model.layers)
        slots = self._model.zeros(len(self._holders), mesh.tensor.size, self._copies)
        for table, holders in enumerate(self._holders):
            for place, (layer, _) in enumerate(holders):
                if layer in layers:
                    weight_WD = layers[layer].weight
                    assert isinstance(weight_WD, Tensor)
                    copy = place * mesh.data.size + mesh.data.rank
                    slots[table, mesh.tensor.rank, copy] = checksum(weight_WD.detach()).double()
        return slots.view(-1)

    def finish(self, slots: Tensor) -> Measures:
        sums_GC = slots.view(-1, self._copies)
        differ_G = (sums_GC != sums_GC[:, :1]).any(dim=1)
        found = {"replicas_differ": float(differ_G.sum())}
        for group in differ_G.nonzero().flatten().tolist():
            values, counts = sums_GC[group].unique(return_counts=True)
            if 2 * counts.max() > self._copies:
                odd = (sums_GC[group] != values[counts.argmax()]).nonzero()[0].item()
                found["replicas_odd_rank"] = float(self._rank(group, int(odd)))
                break
        return Measures(found)

    def _rank(self, group: int, copy: int) -> int:
        """Global rank of a copy."""
        mesh = self._model.mesh
        table, tensor = divmod(group, mesh.tensor.size)
        place, data = divmod(copy, mesh.data.size)
        _, stage = self._holders[table][place]
        return (stage * mesh.data.size + data) * mesh.tensor.size + tensor


def checksum(table_WD: Tensor) -> Tensor:
    """A number below 2^52 that changes with every single bit, and where rows change places.

    Bit patterns are summed by row and rows weighted with odd numbers, modulo 2^52 throughout.
    """
    sums_W = table_WD.view(_BITS[table_WD.element_size()]).sum(dim=1, dtype=torch.int64)
    weights_W = 2 * torch.arange(len(sums_W), device=sums_W.device) + 1
    return (sums_W * weights_W).sum() % _MODULUS


def replicas_apply(model: ProbedModel) -> bool:
    """Whether there are copies to compare."""
    config, mesh = model.config, model.mesh
    apart = config.model.tied_embeddings and mesh.pipeline.size > 1
    return config.probes.replicas and config.parallel.zero_stage < 3 and (mesh.data.size > 1 or apart)
