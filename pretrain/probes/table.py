"""This module finds a table of the outline, and the rows of it that a rank holds.

W  rows of the padded table on a tensor rank, D  its columns
"""

from torch import Tensor, nn

from pretrain.models.outline import TableSize
from pretrain.probes.probe import Observe, ProbedModel, observe_first_call


class LocalTable:
    """It is the part that this rank has in a table.

    `rows` are the real ones [start, stop) that it holds, none on stages without the layer; `own` are those of them that
    it speaks for: the ranks that hold the same rows share them.
    """

    def __init__(self, model: ProbedModel, layer: int) -> None:
        size = model.outline.layers[layer].table
        assert size is not None
        self.model = model
        self.layer = layer
        self.size: TableSize = size
        (weight,) = (p for p in model.outline.layers[layer].parameters if p.name == "weight")
        cut = weight.sharded is not None
        tensor, sharers = model.mesh.tensor, model.mesh.data if cut else model.mesh.stage
        width = weight.shape[0] // tensor.size if cut else weight.shape[0]
        self._offset = width * tensor.rank if cut else 0
        first = min(self._offset, size.rows)
        last = min(first + width, size.rows)
        self.rows = first, last
        count = last - first
        self.own = (
            first + count * sharers.rank // sharers.size,
            first + count * (sharers.rank + 1) // sharers.size,
        )

    @property
    def here(self) -> bool:
        """It says whether the table lies on this stage."""
        return self.layer in self.model.local

    @property
    def stage(self) -> int:
        """It returns the pipeline stage that the table lies on."""
        return self.model.stage(self.layer)

    def observe(self, look: Observe) -> None:
        """Call `look` when the layer next computes with the table; never on stages without it."""
        if self.here:
            observe_first_call(self.model.local[self.layer], look)

    def weights(self, first: int, last: int) -> Tensor:
        """It returns the rows [first, last), all of which this rank holds; (last - first, D)."""
        return weight_of(self.model.local[self.layer]).detach()[first - self._offset : last - self._offset]


def weight_of(layer: nn.Module) -> nn.Parameter:
    """It returns the table of a layer, (W, D)."""
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight
