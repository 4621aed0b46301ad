"""It finds the matrices of the model in the tensors that a layer-wise optimizer moves, however DeepSpeed lays them out.

Under tensor parallelism, bf16 and ZeRO a rank holds runs of elements of matrices; see `pretrain.backend.pieces`.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise

from torch import Tensor

from pretrain.backend.pieces import NamedModel
from pretrain.backend.update_gate import UpdateGate
from pretrain.models.outline import Outline, ParameterSize
from pretrain.optim.layerwise import Matrices, MatrixPart


def local_matrices(model: NamedModel, gate: UpdateGate) -> Matrices:
    """It says what this rank holds of which matrix; of copies over all ranks, one is measured."""
    mesh = model.mesh
    sizes = matrix_sizes(model.outline)
    firsts = dict(zip(sizes, accumulate((size.matrices for size in sizes.values()), initial=0), strict=False))
    names = {id(parameter): name for name, parameter in model.parameters()}
    parts: dict[Tensor, list[MatrixPart]] = {}
    for held in gate.masters():
        own = parts.setdefault(held.moved, [])
        name = names[id(held.parameter)]
        if name not in sizes:
            continue
        offset = held.weight.storage_offset() - held.moved.storage_offset() - held.start
        stop = held.start + held.weight.numel()
        for number, (first, last) in enumerate(borders(sizes[name], mesh.tensor.size), start=firsts[name]):
            low, high = max(first, held.start), min(last, stop)
            if low < high:
                # Data-parallel ranks that hold the same share the measuring out among themselves.
                turn = gate.masters_sharded or number % mesh.data.size == mesh.data.rank
                own.append(
                    MatrixPart(number, int(offset) + low, high - low, turn and gate.counts(held.parameter))
                )
    return Matrices(sum(size.matrices for size in sizes.values()), parts, mesh.agree_sum)


def matrix_sizes(outline: Outline) -> dict[str, ParameterSize]:
    """It returns the parameters of more than one dimension by their names in the whole model."""
    return {
        f"{layer.name}.{size.name}": size
        for layer in outline.layers
        for size in layer.parameters
        if len(size.shape) > 1
    }


def borders(size: ParameterSize, tensor: int) -> Iterator[tuple[int, int]]:
    """It yields where each matrix that is stacked in a parameter begins and ends in a rank's flattened share of it."""
    rows = size.stacked or (1,)
    ends = accumulate((size.size_per_rank(tensor) * count // sum(rows) for count in rows), initial=0)
    yield from pairwise(ends)
