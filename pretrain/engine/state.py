"""The state of an engine is all that training changes on this rank, in checkpoint files and in memory."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pretrain.backend.host_copy import copied
from pretrain.backend.live_state import Tree, checksum, live_state, restore_state
from pretrain.backend.pieces import NamedModel, NamedState, StateSource
from pretrain.backend.update_gate import UpdateGate
from pretrain.engine.reparametrization import Reparametrization
from pretrain.models.named import Piece
from pretrain.optim.optimizer import Counting
from pretrain.probes.probes import Probes

Settings = Sequence[Mapping[str, Any]]
"""What the configuration says of each parameter group."""


class EngineState:
    """It saves, loads, copies and restores weights, optimizer and what the engine keeps beside them."""

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        gate: UpdateGate,
        reparametrization: Reparametrization,
        probes: Probes,
        model: NamedModel,
        counting: Counting,
    ) -> None:
        """`engine` is DeepSpeed's; `settings` are those of the optimizer by the configuration of this session, and
        `counting` says where it counts."""
        self._engine = engine
        self._optimizer = optimizer
        self._settings = settings
        self._gate = gate
        self._reparametrization = reparametrization
        self._probes = probes
        self._named = NamedState(engine, optimizer, reparametrization.optimizer, counting, gate, model)

    def to_save(self) -> Iterator[Piece]:
        """It yields the pieces of the whole model's tensors that this rank writes; references, not copies."""
        return self._named.to_save()

    def scalars(self) -> dict[str, Any]:
        """It returns what is no tensor of the model, in tensors and plain values that are equal on all ranks."""
        return {**self._named.scalars(), "probes": self._probes.state_dict()}

    def fill(self, source: StateSource) -> None:
        """It puts saved state in place, of whatever layout; `complete` comes next. It raises whatever reading does."""
        self._named.fill(source)

    def complete(self, probes: Mapping[str, Any]) -> None:
        """It renews what follows from the state, on all ranks together; `probes` is theirs, of `scalars`."""
        self._named.complete()
        # The files have the settings of then; the configuration may have others now.
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        self._gate.set_clipping()
        self._reparametrization.materialise()
        self._probes.reset()
        self._probes.load_state_dict(probes)

    def live(self) -> Tree:
        """It returns all that training changes: references, not copies, to be taken between two steps."""
        extra = {"gammas": self._reparametrization.state_dict(), "probes": self._probes.state_dict()}
        return {**live_state(self._engine, self._optimizer), "extra": extra}

    def restore(self, state: Tree) -> None:
        """It puts a copy of an earlier `live` back in place; all ranks together."""
        restore_state(self._engine, self._optimizer, state)
        extra = copied(state["extra"])
        self._reparametrization.load_state_dict(extra["gammas"])
        self._probes.reset()
        self._probes.load_state_dict(extra["probes"])

    def checksum(self) -> int:
        """It returns a hash of all bits of `live` that training rests on, in [0, 2^63); probes may come and go."""
        self._named.clear_padding()
        state = self.live()
        return checksum({**state, "extra": {**state["extra"], "probes": {}}})
