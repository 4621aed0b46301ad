"""A run in miniature takes checkpoints of chosen steps, with an engine that goes on living."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.courses import Batches
from support.steps import train
from support.training import Layout, make_batches, make_config, make_engine, make_mesh
from support.translation import translation_batches, translation_config

from pretrain.checkpoint.compatibility import Compatibility
from pretrain.checkpoint.folder import CheckpointFolder
from pretrain.checkpoint.loader import CheckpointLoader
from pretrain.checkpoint.restored import Restored
from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.writer import CheckpointWriter, NotCertified
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.step import TrainState


def save(
    writer: CheckpointWriter,
    engine: TrainEngine,
    state: TrainState,
    data: Mapping[str, Any],
    watchdog: Mapping[str, Any] | None = None,
) -> Tag:
    """It writes and seals a checkpoint; SaveFailed says why there is none."""
    return writer.finish(writer.begin(engine, state, data, watchdog or {}))


def certify(writer: CheckpointWriter, tag: Tag, horizon: int) -> str:
    """It certifies a checkpoint whose bytes are still right, and says why it was not certified; empty if it was."""
    try:
        writer.finish_certify(writer.start_verify(tag), horizon)
    except NotCertified as error:
        return str(error)
    return ""


LAYOUT = Layout(tensor=2, zero=1)
KINDS: dict[str, tuple[Callable[[Layout, dict[str, Any]], RunConfig], Batches]] = {
    "gpt": (lambda layout, model: make_config(layout, **model), make_batches),
    "translation": (translation_config, translation_batches),
}
"""It maps a kind of task to the configuration and the batches of a small run."""


@dataclass
class CheckpointRun:
    """It takes checkpoints of chosen steps, with an engine that goes on living."""

    folder: Path
    layout: Layout = LAYOUT
    sections: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kind: str = "gpt"

    def __post_init__(self) -> None:
        configure, self.batches = KINDS[self.kind]
        base = configure(self.layout, self.model)
        self.config = RunConfig.model_validate({**base.model_dump(mode="json"), **self.sections})
        self.mesh = make_mesh(self.config.parallel)
        self.engine: TrainEngine = make_engine(self.config, self.mesh)
        identity = Compatibility.of(self.config, self.mesh, "fingerprint")
        self.checkpoints = CheckpointFolder(
            self.folder, self.mesh, watched=self.config.watchdog.enabled, report=self.notes.append
        )
        self.writer = CheckpointWriter(self.checkpoints, self.config.checkpoint, identity)
        self.loader = CheckpointLoader(self.checkpoints, identity)
        self.step = 0

    def train_to(self, step: int) -> list[tuple[float, float]]:
        course = train(self.engine, self.config, self.step + 1, step, self.batches)
        self.step = step
        return course

    def save_at(self, *steps: int) -> list[Tag]:
        tags = []
        for step in steps:
            self.train_to(step)
            state = TrainState(step=step, updates=step)
            tags.append(save(self.writer, self.engine, state, {"position": 12 * step}, {"sum": step / 4}))
        return tags

    def resume(self, restored: Restored | None) -> str:
        assert restored is not None
        restored.restore_random_state()
        self.step = restored.state.step
        assert restored.data == {"position": 12 * self.step}
        assert restored.watchdog == {"sum": self.step / 4}
        return str(restored.tag)


def attempt(action: Callable[[], Any]) -> str:
    try:
        return str(action())
    except CheckpointError as error:
        return f"refused: {error}"


def chosen(run: CheckpointRun, limit_step: int, *, oldest: bool = False) -> str:
    """It says what a rollback to at most this step would load, with a star if that is certified."""
    found = run.checkpoints.candidates()
    choice = found.preferred(limit_step, oldest=oldest)
    return f"{choice[0]}{'*' * (choice[0] in found.certified)}" if choice else "nothing"


def latest(folder: Path) -> str:
    return (folder / "latest").read_text() if (folder / "latest").exists() else ""
