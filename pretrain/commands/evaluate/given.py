"""`surefoot evaluate` opens what a model is to be evaluated on."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.files import open_regular
from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.preparing.json_lines import told_json
from data_pipeline.shown import shown
from data_pipeline.source import Baseline
from pretrain.commands.held_out import held_out, sound_batches
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable
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
    samples = options.samples or (None if options.data else checkpoint.config.evaluation.samples)
    with held_out(checkpoint, options.data, samples, "--data or --text") as (name, data):
        baseline = data.baseline if data.whole else None
        batches = sound_batches(checkpoint, data)
        yield Given(f"validation data of {name}", batches, baseline, data.places())


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
        with open_regular(path, follow=True) as raw:
            if what := told_json(path, raw):
                raise DataError(
                    f"--text {shown(path)}: is {what}, and a text is taken as it is; `surefoot prepare text` it (with "
                    "--format text where that is meant) and give --data"
                )
        with parsed_as(DataError, f"--text {path}"):
            content = read_whole(path, LARGEST_TEXT)
            if b"\0" in content:
                raise ValueError("holds NUL bytes, as no text does (binary data, or UTF-16)")
            tokens = codec.encode(content.decode())
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
