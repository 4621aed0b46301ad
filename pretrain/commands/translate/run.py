"""`surefoot translate` loads a model, tells which, and translates what is read."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.preparing.documents import text_rows
from data_pipeline.shards.storage import data_errors
from data_pipeline.shown import shown
from parallel.mesh import ParallelMesh
from pretrain.commands.output import write
from pretrain.commands.searches import search_of
from pretrain.errors import ConfigurationError
from pretrain.export.opened import open_model, told
from pretrain.inference.model import load_model
from pretrain.inference.translate import Batching, SentenceTranslator
from pretrain.tasks.registry import TASKS


def run(options: argparse.Namespace) -> int:
    """It translates standard input."""
    checkpoint = open_model(options.model)
    config = checkpoint.config
    translator = TASKS[config.model.kind].translator(config.model, config.data, checkpoint.companion)
    if translator is None:
        raise ConfigurationError(
            f"{shown(checkpoint.folder)}: holds a model of kind {config.model.kind}, which is none that translates"
        )
    print(f"surefoot translate: {told(options.model, checkpoint)}", file=sys.stderr)
    model = load_model(
        config.model, config.data, config.precision.dtype, checkpoint.tensors, ParallelMesh.alone()
    )
    batching = Batching(1, 1) if sys.stdin.isatty() else Batching(options.batch_size)
    write(translated(SentenceTranslator(model, translator, search_of(options), batching), options))
    return 0


def translated(translator: SentenceTranslator, options: argparse.Namespace) -> Iterator[str]:
    """It yields the lines of the output. Raises DataError for input that is no text, or too long."""
    for source, found in translator.lines(read_lines(), cut=options.cut):
        text = translator.text(found)
        if options.json:
            facts = {"source": source, "translation": text}
            scores = {"log_probability": found.log_probability, "score": found.score}
            text = json.dumps(facts | scores, ensure_ascii=False)
        yield text + "\n"


def read_lines() -> Iterator[tuple[str, str]]:
    """It yields the lines of standard input, each with its place. Raises DataError where they cannot be read."""
    with data_errors(Path("standard input")):
        yield from text_rows(sys.stdin.buffer, "standard input")
