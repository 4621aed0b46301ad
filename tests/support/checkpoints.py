"""Checkpoints at once, where a run would go on in between."""

from collections.abc import Mapping
from typing import Any

from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.writer import CheckpointWriter, NotCertified
from pretrain.engine.engine import TrainEngine
from pretrain.step import TrainState


def save(
    writer: CheckpointWriter,
    engine: TrainEngine,
    state: TrainState,
    data: Mapping[str, Any],
    watchdog: Mapping[str, Any] | None = None,
) -> Tag:
    """Write and seal a checkpoint; SaveFailed says why there is none."""
    return writer.finish(writer.begin(engine, state, data, watchdog or {}))


def certify(writer: CheckpointWriter, tag: Tag, horizon: int) -> str:
    """Certify a checkpoint whose bytes are still right; why it was not certified, or an empty string."""
    try:
        writer.finish_certify(writer.start_verify(tag), horizon)
    except NotCertified as error:
        return str(error)
    return ""
