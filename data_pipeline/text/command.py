"""text for next-token prediction

The command line of `surefoot prepare text`.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from data_pipeline.paths import location_argument, path_argument
from data_pipeline.preparing.command_line import exit_code, positive, processes, report_left_out, share
from data_pipeline.shown import CommandLine, shown
from data_pipeline.text.prepare import Prepared, TextSettings, prepare_text

DESCRIPTION = "Train a tokenizer or take one, tokenize, pack into blocks, write train and validation shards."
SOURCES = "file, folder or pattern of UTF-8 text or JSON lines, also .gz, .zst, .bz2, .xz; or python-stdlib"


def main(arguments: Sequence[str]) -> int:
    """It runs the command line and returns the exit code."""
    settings = _settings(_parser().parse_args(arguments))
    return exit_code(lambda: _report(settings, prepare_text(settings)))


def _settings(arguments: argparse.Namespace) -> TextSettings:
    values = {field.name: getattr(arguments, field.name) for field in fields(TextSettings)}
    return TextSettings(**{**values, "sources": tuple(arguments.sources)})


def _report(settings: TextSettings, prepared: Prepared | None) -> None:
    if prepared is None:
        print(f"{shown(settings.out)}: complete already, made with the same settings from the same files")
        return
    report_left_out(prepared.left_out)
    print(_in_words(prepared.summary))
    for manifest in prepared.manifests:
        print(
            f"{shown(settings.out / manifest.split)}: {manifest.tokens:,} tokens in {manifest.samples:,} samples of "
            f"{manifest.sequence_length}, from {manifest.documents:,} documents, "
            f"vocabulary {manifest.tokenizer.vocabulary_size:,}"
        )
    if (baseline := prepared.manifests[-1].unigram_cross_entropy) is not None:
        print(f"a unigram model has a validation loss of {baseline:.4f} nats per token")


def _in_words(summary: Mapping[str, Any]) -> str:
    left_out = sum(summary["left_out"].values())
    return (
        f"read {summary['documents']:,} documents from {summary['files']:,} files of {summary['bytes']:,} bytes; "
        f"cut {summary['cut']:,} texts, left out {left_out:,} files or rows, passed over "
        f"{summary['empty']:,} empty rows and {summary['duplicates']:,} second names"
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(prog="surefoot prepare text", description=DESCRIPTION)
    add = parser.add_argument
    add("sources", nargs="+", type=location_argument, metavar="SOURCE", help=SOURCES)
    add("--out", type=path_argument, required=True, metavar="DIR", help="folder to make")
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument(
        "--vocabulary-size", type=positive, default=8192, metavar="N", help="train a tokenizer (%(default)s)"
    )
    tokenizer.add_argument(
        "--tokenizer", type=path_argument, metavar="FILE", help="or use this tokenizer.model"
    )
    add(
        "--sequence-length", type=positive, default=1024, metavar="N", help="tokens in a sample (%(default)s)"
    )
    add("--validation-fraction", type=share, default=0.05, metavar="F", help="share held out (%(default)s)")
    add(
        "--format",
        choices=("auto", "text", "jsonl"),
        default="auto",
        help="read all files as plain text or as JSON lines (%(default)s: by name and first line)",
    )
    add("--field", default="text", metavar="NAME", help="field of a JSONL line (%(default)s)")
    add(
        "--workers",
        type=processes,
        default=os.cpu_count(),
        metavar="N",
        help="processes that tokenize (%(default)s)",
    )
    add("--shard-samples", type=positive, default=65536, metavar="N", help="samples in a shard (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="chooses what is held out (%(default)s)")
    add("--overwrite", action="store_true", help="replace a DIR made with other settings or files")
    return parser
