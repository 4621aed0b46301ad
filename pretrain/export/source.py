"""What is exported, and what has been: a checkpoint with what its run says of it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.files import lines_backwards, open_regular
from data_pipeline.parsing import parse_json
from pretrain.checkpoint.certificate import Certificate
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.sealed import open_sealed
from pretrain.config.run import RunConfig
from pretrain.inference.model import TensorSource
from pretrain.run_folder import METRICS
from pretrain.step import TrainState
from pretrain.tasks.registry import TASKS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """It is a checkpoint that has been verified."""

    config: RunConfig
    """As it was when the checkpoint was saved."""
    manifest: Manifest
    tensors: TensorSource
    companions: Mapping[str, bytes] = field(default_factory=dict)
    """Files that the model is used with, by name, such as the tokenizer."""
    certificate: Certificate | None = None
    """It has one if it was certified."""
    step: Row = field(default_factory=dict)
    """The row of its last step in metrics.jsonl; empty: not known."""
    validation: Row = field(default_factory=dict)
    """That of the last validation before it; empty: not known."""


@dataclass(frozen=True)
class Exported:
    """It says what an export has written."""

    architecture: str
    """Its name; empty for tensors by our own names."""
    tensors: int
    numbers: int
    """Elements of all tensors."""
    dtype: str


def open_source(where: Path) -> Source:
    """It opens a checkpoint to be exported: the folder of one, `RUN@TAG`, or the best of a run.

    Raises what `open_sealed` does, and OSError.
    """
    checkpoint = open_sealed(where)
    manifest = checkpoint.manifest
    step, validation = rows_of(checkpoint.run_folder, manifest.state)
    return Source(
        checkpoint.config,
        manifest,
        checkpoint.tensors,
        {
            name: checkpoint.companion(name)
            for name in TASKS[checkpoint.config.model.kind].source.companion_files
            if checkpoint.has(name)
        },
        checkpoint.certificate,
        step,
        validation,
    )


def rows_of(run: Path | None, state: TrainState) -> tuple[Row, Row]:
    """It returns the rows of the last step and of the last validation of a state in the metrics of its run; empty where
    they are not there."""
    step: Row = {}
    validation: Row = {}
    with suppress(OSError):
        if run is None:
            return step, validation
        with open_regular(run / METRICS) as file:
            for line in lines_backwards(file):
                row = _row(line)
                at = row.get("step", state.step)
                if "loss" in row and at == state.step:
                    step = step or row
                if "validation_loss" in row and at == state.validated:
                    validation = validation or row
                if step and (validation or not state.validated):
                    break
    return step, validation


def _row(line: bytes) -> Row:
    with suppress(ValueError):
        row = parse_json(line)
        return row if isinstance(row, dict) else {}
    return {}
