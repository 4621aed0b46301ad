"""pairs of sentences for machine translation

The command line of `surefoot prepare translation`.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.paths import location_argument, path_argument
from data_pipeline.preparing.command_line import at_least, exit_code, positive, processes, share
from data_pipeline.shown import CommandLine, shown
from data_pipeline.translation.corpus import RawFiles
from data_pipeline.translation.filters import Limits
from data_pipeline.translation.prepare import Prepared, TranslationSettings, prepare_translation

DESCRIPTION = "Train tokenizers or take them, tokenize pairs of sentences, write train and validation shards."
PARALLEL = "text with a sentence a line, as many as the other side has; also .gz, .zst, .bz2, .xz"
BOTH = ".tsv with source and target, or .jsonl with two fields, also compressed"


def main(arguments: Sequence[str]) -> int:
    """It runs the command line and returns the exit code."""
    parser = _parser()
    settings = _settings(parser, parser.parse_args(arguments))
    return exit_code(lambda: _report(settings, prepare_translation(settings)))


def _settings(parser: argparse.ArgumentParser, given: argparse.Namespace) -> TranslationSettings:
    train = RawFiles(tuple(given.source), tuple(given.target), tuple(given.pairs))
    validation = RawFiles(
        tuple(given.validation_source), tuple(given.validation_target), tuple(given.validation_pairs)
    )
    if not train:
        parser.error("name the files with --source and --target, or with --pairs")
    for raw, prefix in ((train, "--"), (validation, "--validation-")):
        if len(raw.source) != len(raw.target):
            parser.error(
                f"{prefix}source and {prefix}target name {len(raw.source)} and {len(raw.target)} files; name a target "
                "for each source, in the same order"
            )
    if len(given.tokenizer) > 2:
        parser.error(
            "--tokenizer takes one file for both sides, or one for the source and one for the target"
        )
    if given.tokenizer and given.separate:
        parser.error(
            "--separate trains two tokenizers, and --tokenizer takes what is there; give one of them"
        )
    return TranslationSettings(
        train=train,
        validation=validation,
        out=given.out,
        fields=(given.fields[0], given.fields[1]),
        vocabulary_size=given.vocabulary_size,
        tokenizers=tuple(given.tokenizer),
        separate=given.separate,
        validation_fraction=given.validation_fraction,
        limits=Limits(given.max_length, given.max_ratio, given.drop_copies, given.drop_untranslated),
        workers=given.workers,
        shard_samples=given.shard_samples,
        seed=given.seed,
        overwrite=given.overwrite,
    )


def _report(settings: TranslationSettings, prepared: Prepared | None) -> None:
    if prepared is None:
        print(f"{shown(settings.out)}: complete already, made with the same settings from the same files")
        return
    print(_in_words(prepared.summary))
    for manifest in prepared.manifests:
        sizes = " and ".join(
            f"{size:,}" for size in dict.fromkeys(e.vocabulary_size for e in manifest.tokenizers)
        )
        print(
            f"{shown(settings.out / manifest.split)}: {manifest.samples:,} pairs of {manifest.source_tokens:,} and "
            f"{manifest.target_tokens:,} tokens, at most {manifest.longest_source:,} and {manifest.longest_target:,} "
            f"in a sentence, vocabulary {sizes}"
        )
    if (baseline := prepared.manifests[-1].unigram_cross_entropy) is not None:
        print(f"a unigram model has a validation loss of {baseline:.4f} nats per token")


def _in_words(summary: Mapping[str, Any]) -> str:
    read = f"read {summary['pairs']:,} pairs from {summary['files']:,} files of {summary['bytes']:,} bytes"
    left_out = [
        f"{count:,} of {split} ({reason})"
        for split, reasons in summary["left_out"].items()
        for reason, count in reasons.items()
    ]
    return f"{read}; left out {', '.join(left_out) or 'none'}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(prog="surefoot prepare translation", description=DESCRIPTION)
    add = parser.add_argument
    _add_files(parser)
    add("--out", type=path_argument, required=True, metavar="DIR", help="folder to make")
    _add_tokenizers(parser)
    add(
        "--max-length",
        type=positive,
        metavar="N",
        help="leave out pairs with more tokens on a side, end included",
    )
    add("--max-ratio", type=at_least(1), metavar="R", help="leave out pairs with one side R times as long")
    add("--drop-copies", action="store_true", help="leave out pairs that stood there before")
    add("--drop-untranslated", action="store_true", help="leave out pairs with equal sides")
    add(
        "--validation-fraction",
        type=share,
        default=0.01,
        metavar="F",
        help="share held out where no validation files are given (%(default)s)",
    )
    add(
        "--workers",
        type=processes,
        default=os.cpu_count(),
        metavar="N",
        help="processes that tokenize (%(default)s)",
    )
    add("--shard-samples", type=positive, default=65536, metavar="N", help="pairs in a shard (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="chooses what is held out (%(default)s)")
    add("--overwrite", action="store_true", help="replace a DIR made with other settings or files")
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = {"source": PARALLEL, "target": "its translation, line by line, as many files", "pairs": BOTH}
    for side, what in names.items():
        add(f"--{side}", nargs="+", default=(), type=location_argument, metavar="FILE", help=what)
    for side in names:
        add(
            f"--validation-{side}",
            nargs="+",
            default=(),
            type=location_argument,
            metavar="FILE",
            help="the same, to validate with",
        )
    add(
        "--fields",
        nargs=2,
        default=("source", "target"),
        metavar="NAME",
        help="fields of JSONL (source target)",
    )


def _add_tokenizers(parser: argparse.ArgumentParser) -> None:
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument(
        "--vocabulary-size", type=positive, default=8192, metavar="N", help="train a tokenizer (%(default)s)"
    )
    tokenizer.add_argument(
        "--tokenizer",
        nargs="+",
        default=(),
        type=path_argument,
        metavar="FILE",
        help="or use this tokenizer.model for both sides, or one for each",
    )
    parser.add_argument(
        "--separate", action="store_true", help="train a tokenizer for each side, of as many ids"
    )
