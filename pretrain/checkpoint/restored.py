"""A checkpoint, from disk or from host memory, gives this back beside the engine's state."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.random_state import restore_random_state
from pretrain.checkpoint.tag import Tag
from pretrain.step import TrainState


@dataclass(frozen=True)
class Restored:
    """It is the run as it was, apart from the weights and the optimizer, which the engine has now."""

    tag: Tag | None
    """None: it was in host memory."""
    state: TrainState
    data: dict[str, Any]
    """Position of the data stream."""
    watchdog: dict[str, Any]
    """State of the watchdog."""
    random: dict[str, Any]
    """Random state of this rank; empty where the checkpoint was saved in another layout."""
    run_id: str
    """The run that wrote it; empty where that is not known."""
    proof: str
    """Digest of the checksums of all ranks' weights and optimizers; empty where none were saved."""
    converted: str = ""
    """In what the layout that it was saved in differs from the run's, such as `tensor 2 -> 1`; empty: in nothing."""

    def restore_random_state(self) -> None:
        """It goes on with the generators of then, if they are known. It is called last, when everything else is in
        place."""
        if self.random:
            restore_random_state(self.random)


def proof_of(checksums: Sequence[int | None]) -> str:
    """It returns a digest of the checksums of all ranks; empty if one is missing."""
    return "" if None in checksums else hashlib.sha256(repr(list(checksums)).encode()).hexdigest()[:16]
