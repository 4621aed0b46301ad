"""`surefoot evaluate` opens what a model is to be evaluated on."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data_pipeline.batches import Batch
from data_pipeline.config import SourceConfig
from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.reading.mixture import has_validation
from data_pipeline.reading.stream import ValidationSet
from data_pipeline.shown import shown
from data_pipeline.source import Baseline
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable
from pretrain.run_folder import CONFIG
from pretrain.tasks.registry import TASKS

LARGEST_TEXT = 2**30
"""Bytes."""


@dataclass(frozen=True)
class Given:
    """It is what a model is evaluated on."""

    name: str
    batches: Iterable[Batch]
    baseline: Baseline | None
    places: Sequence[str] = ()
    """Where the samples of prepared data lie, row by row; empty for padding."""


@contextmanager
def given(checkpoint: Usable, options: argparse.Namespace) -> Iterator[Given]:
    """It opens what the options ask for.

    Raises:
        ConfigurationError: the model reads no text, or does not translate.
        DataError: there is no such data, or it is not for this model.
    """
    if options.text:
        yield Given(f"text {shown(options.text)}", text_batches(checkpoint, options.text), None)
        return
    if options.source:
        name = f"{shown(options.source)} and {shown(options.target)}"
        yield Given(name, pair_batches(checkpoint, options.source, options.target), None)
        return
    data = checkpoint.config.data
    if options.data:
        with parsed_as(ConfigurationError, "--data"):
            split = SourceConfig(path=options.data)
        data = data.model_copy(update={"sources": (split,), "validation": (split,)})
    elif not checkpoint.has(CONFIG):
        raise DataError(f"{shown(checkpoint.folder)} has no data of its own; give it --data or --text")
    if not has_validation(data):
        raise DataError("the run's data has no validation split; give other data (--data) or a text (--text)")
    samples = options.samples or (None if options.data else checkpoint.config.evaluation.samples)
    source = TASKS[checkpoint.config.model.kind].source
    held_out = ValidationSet(source, data, samples=samples, data_rank=0, data_size=1)
    try:
        check_companions(checkpoint, held_out)
        name = ", ".join(shown(entry.path) for entry in data.validation or data.sources)
        batches = chain.from_iterable(held_out)
        baseline = held_out.baseline if held_out.whole else None
        yield Given(f"validation data of {name}", batches, baseline, held_out.places())
    finally:
        held_out.close()


def text_batches(checkpoint: Usable, path: Path) -> Iterator[Batch]:
    """It returns the batches of a text file. It raises what `given` does."""
    config = checkpoint.config
    codec = TASKS[config.model.kind].text(config.model, config.data, checkpoint.companion)
    if codec is None:
        raise ConfigurationError(
            f"--text: a model of kind {config.model.kind} reads no text of its own; give it --data, or --source and "
            "--target"
        )
    try:
        with parsed_as(DataError, f"--text {path}"):
            tokens = codec.encode(read_whole(path, LARGEST_TEXT).decode())
    except OSError as error:
        raise DataError(f"--text {shown(path)}: {error.strerror}") from error
    return codec.batches(tokens, config.data.micro_batch_size)


def pair_batches(checkpoint: Usable, source: str, target: str) -> Iterator[Batch]:
    """It returns the batches of two files with a sentence a line. It raises what `given` does."""
    config = checkpoint.config
    translator = TASKS[config.model.kind].translator(config.model, config.data, checkpoint.companion)
    if translator is None:
        raise ConfigurationError(
            f"--source: a model of kind {config.model.kind} does not translate; give it --data"
        )
    return translator.batches(source, target, config.data.micro_batch_size)


def check_companions(checkpoint: Usable, data: ValidationSet) -> None:
    """It raises DataError for data that was made with another tokenizer, say, than the model's."""
    for name, content in data.companions.items():
        if checkpoint.has(name) and checkpoint.companion(name) != content:
            raise DataError(f"the data was made with another {name} than {shown(checkpoint.folder)} has")
