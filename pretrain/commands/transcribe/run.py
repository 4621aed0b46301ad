"""`surefoot transcribe` loads a model, tells which, and writes what recordings say."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.shown import masked, shown
from parallel.mesh import ParallelMesh
from pretrain.commands.output import write
from pretrain.commands.searches import decoding_of
from pretrain.errors import DATA_EXIT_CODE, ConfigurationError
from pretrain.export.opened import open_model, told
from pretrain.inference.model import load_model
from pretrain.inference.transcribe import Batching, FileTranscriber
from pretrain.tasks.registry import TASKS
from pretrain.tasks.transcriber import Transcript

Found = tuple[Path, Transcript | DataError]


def run(options: argparse.Namespace) -> int:
    """It transcribes the files that are given."""
    decoding = decoding_of(options)
    checkpoint = open_model(options.model)
    config = checkpoint.config
    task = TASKS[config.model.kind]
    transcriber = task.transcriber(config.model, config.data, checkpoint.companion, decoding)
    if transcriber is None:
        raise ConfigurationError(
            f"{shown(checkpoint.folder)}: holds a model of kind {config.model.kind}, which is none that transcribes"
        )
    print(f"surefoot transcribe: {told(options.model, checkpoint)}", file=sys.stderr)
    model = load_model(
        config.model, config.data, config.precision.dtype, checkpoint.tensors, ParallelMesh.alone()
    )
    files = FileTranscriber(model, transcriber, Batching(options.batch_size)).files(options.audio)
    failed: list[DataError] = []
    write(as_json(noted(files, failed)) if options.json else as_text(noted(files, failed), options.audio))
    return DATA_EXIT_CODE if failed else 0


def noted(files: Iterable[Found], failed: list[DataError]) -> Iterator[Found]:
    """It yields the files, tells what is wrong with them as it comes, and notes that."""
    for path, found in files:
        if isinstance(found, DataError):
            print(f"surefoot transcribe: error: {shown(masked(found))}", file=sys.stderr)
            failed.append(found)
        yield path, found


def as_text(files: Iterable[Found], given: list[Path]) -> Iterator[str]:
    """It yields a line for each file that was transcribed, after its name if several are given."""
    for path, found in files:
        if isinstance(found, Transcript):
            line = " ".join(found.text.splitlines())
            yield f"{shown(path)}\t{line}\n" if len(given) > 1 else f"{line}\n"


def as_json(files: Iterable[Found]) -> Iterator[str]:
    """It yields an object for each file, as a line."""
    for path, found in files:
        facts: dict[str, Any] = {"file": shown(path)}
        if isinstance(found, DataError):
            facts["error"] = shown(masked(found))
        else:
            facts |= {
                "transcript": found.text,
                "log_probability": found.log_probability,
                "score": found.score,
                "units": [
                    {"unit": unit.text, "start": round(unit.start, 3), "end": round(unit.end, 3)}
                    for unit in found.units
                ],
            }
        yield json.dumps(facts, ensure_ascii=False) + "\n"
