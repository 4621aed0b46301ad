"""The state of an engine is all that training changes on this rank, in checkpoint files and in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pretrain.backend.checkpoint_io import (
    SavedFiles,
    load_weights_and_optimizer,
    save_weights_and_optimizer,
)
from pretrain.backend.host_copy import HostCopies, copied
from pretrain.backend.live_state import Tree, checksum, live_state, restore_state
from pretrain.backend.update_gate import UpdateGate
from pretrain.engine.reparametrization import Reparametrization
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
    ) -> None:
        """`engine` is DeepSpeed's; `settings` are those of the optimizer by the configuration of this session."""
        self._engine = engine
        self._optimizer = optimizer
        self._settings = settings
        self._gate = gate
        self._reparametrization = reparametrization
        self._probes = probes
        self._copies = HostCopies()

    def save(self, checkpoints: Path, tag: str, *, deferred: bool) -> SavedFiles:
        """It writes this rank's share of weights and optimizer to `checkpoints/tag`, or copies it to be written later.

        Nothing is raised for a full disk.
        """
        return save_weights_and_optimizer(self._engine, checkpoints, tag, self._copies if deferred else None)

    def load(self, checkpoints: Path, tag: str) -> None:
        """It reads weights and optimizer of a checkpoint that has been verified."""
        load_weights_and_optimizer(self._engine, checkpoints, tag)
        # The file has the settings of then; the configuration may have others now.
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        self._gate.set_clipping()
        self._probes.reset()

    def extra(self) -> dict[str, Any]:
        """It returns what is in none of DeepSpeed's files; of tensors and plain values."""
        return {
            "reparametrization": self._reparametrization.state_dict(),
            "probes": self._probes.state_dict(),
        }

    def load_extra(self, state: Mapping[str, Any]) -> None:
        """It is called after `load`."""
        self._reparametrization.load_state_dict(state["reparametrization"])
        self._probes.load_state_dict(state.get("probes", {}))

    def live(self) -> Tree:
        """It returns all that training changes: references, not copies, to be taken between two steps."""
        return {**live_state(self._engine, self._optimizer), "extra": self.extra()}

    def restore(self, state: Tree) -> None:
        """It puts a copy of an earlier `live` back in place; all ranks together."""
        restore_state(self._engine, self._optimizer, state)
        self._probes.reset()
        self.load_extra(copied(state["extra"]))

    def checksum(self) -> int:
        """It returns a hash of all bits of `live` that training rests on, in [0, 2^63); probes may come and go."""
        state = self.live()
        return checksum({**state, "extra": {**state["extra"], "probes": {}}})
