"""tell the loss of a model on validation data or on a text"""

import argparse
import shlex

from data_pipeline.paths import location_argument, path_argument
from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import (
    EXPORTS,
    add_beam,
    add_language_model,
    add_length_penalty,
    add_model,
    count,
)


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot evaluate`."""
    parser = CommandLine(
        prog="surefoot evaluate",
        description="Run a trained model over its run's validation data, or over yours, in one process: the loss as "
        "validation in training has it, and for text also by byte and by word, which models with other tokenizers can "
        "be compared by. Of a model that translates also BLEU and chrF of its translations, of one that transcribes "
        "the error rates of its transcripts, by words and by characters.",
        epilog="exit codes: 0 done, 2 configuration or command line, 3 data, 4 no usable checkpoint, 130 interrupted",
    )
    add_model(parser, EXPORTS)
    add_data(parser)
    add_beam(parser, "translations 5, transcripts 16")
    add_length_penalty(parser)
    add_language_model(parser)
    parser.add_argument(
        "--alignments",
        type=path_argument,
        metavar="FILE",
        help="write transcripts there, word below word with what was said; a file that is there is replaced",
    )
    parser.add_argument("--loss-only", action="store_true", help="do not translate or transcribe")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """It declares what a model is evaluated on."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data",
        type=location_argument,
        metavar="DIR",
        help="validation split of other data, prepared with the same tokenizer, say, or a test split by its folder",
    )
    where.add_argument(
        "--text", type=path_argument, metavar="FILE", help="a text as it is, UTF-8, no JSON lines"
    )
    where.add_argument(
        "--source",
        type=location_argument,
        metavar="FILE",
        help="sentences to be translated, a line each, with --target; as they are, also compressed; no JSON lines",
    )
    where.add_argument(
        "--lm-eval",
        nargs="+",
        metavar="TASK",
        help="tasks of lm-evaluation-harness, which runs beside this on an export for Hugging Face",
    )
    parser.add_argument(
        "--target",
        type=location_argument,
        metavar="FILE",
        help="the translations of --source, line by line",
    )
    parser.add_argument(
        "--lm-eval-options",
        type=shlex.split,
        default=[],
        metavar="WORDS",
        help="options of its own, in quotes: --lm-eval-options='--limit 100 --batch_size 8'",
    )
    parser.add_argument(
        "--samples",
        type=count,
        metavar="N",
        help="the first N samples of prepared data (the run's evaluation.samples; with --data all)",
    )
