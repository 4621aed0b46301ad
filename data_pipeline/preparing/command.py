"""The command line of `surefoot prepare`."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.text.prepare import Prepared, TargetExists, TextSettings, prepare_text

EXIT_COMMAND_LINE = 2
EXIT_DATA = 3
EXIT_INTERRUPTED = 130

LISTED = 20
"""Files and texts that were left out and are named; more are counted."""

TEXT = "Train a tokenizer or take one, tokenize, pack into blocks, write train and validation shards."
SOURCES = "file, folder or pattern of UTF-8 text or .jsonl, also .gz or .zst; or python-stdlib"


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    settings = _settings(_parser().parse_args(arguments))
    try:
        _report(settings, prepare_text(settings))
    except TargetExists as error:
        return _fail(error, EXIT_COMMAND_LINE)
    except DataError as error:
        return _fail(error, EXIT_DATA)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", EXIT_INTERRUPTED)
    return 0


def _fail(message: object, code: int) -> int:
    print(f"surefoot prepare: error: {message}", file=sys.stderr)
    return code


def _settings(arguments: argparse.Namespace) -> TextSettings:
    values = {field.name: getattr(arguments, field.name) for field in fields(TextSettings)}
    return TextSettings(**{**values, "sources": tuple(arguments.sources)})


def _report(settings: TextSettings, prepared: Prepared | None) -> None:
    if prepared is None:
        print(f"{settings.out}: complete already, made with the same settings from the same files")
        return
    for entry in prepared.skipped[:LISTED]:
        print(f"left out: {entry}", file=sys.stderr)
    if len(prepared.skipped) > LISTED:
        print(f"left out: {len(prepared.skipped) - LISTED:,} more", file=sys.stderr)
    for manifest in prepared.manifests:
        print(
            f"{settings.out / manifest.split}: {manifest.tokens:,} tokens in {manifest.samples:,} samples of "
            f"{manifest.sequence_length}, from {manifest.documents:,} documents, "
            f"vocabulary {manifest.tokenizer.vocabulary_size:,}"
        )
    if (baseline := prepared.manifests[-1].unigram_cross_entropy) is not None:
        print(f"a unigram model has a validation loss of {baseline:.4f} nats per token")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surefoot prepare",
        description="Turn raw files into shards that a run reads.",
        epilog="exit codes: 0 done, 2 command line, 3 data, 130 interrupted",
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    _add_text_options(tasks.add_parser("text", help="text for next-token prediction", description=TEXT))
    return parser


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help=SOURCES)
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument(
        "--vocabulary-size", type=positive, default=8192, metavar="N", help="train a tokenizer (%(default)s)"
    )
    tokenizer.add_argument("--tokenizer", type=Path, metavar="FILE", help="or use this tokenizer.model")
    add(
        "--sequence-length", type=positive, default=1024, metavar="N", help="tokens in a sample (%(default)s)"
    )
    add("--validation-fraction", type=share, default=0.05, metavar="F", help="share held out (%(default)s)")
    add("--field", default="text", metavar="NAME", help="field of a JSONL line (%(default)s)")
    add(
        "--workers",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="processes that tokenize (%(default)s)",
    )
    add("--shard-samples", type=positive, default=65536, metavar="N", help="samples in a shard (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="chooses what is held out (%(default)s)")
    add("--overwrite", action="store_true", help="replace a DIR made with other settings or files")


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def share(text: str) -> float:
    """A number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value
