"""Commands that use models have these arguments in common."""

import argparse
import os
from pathlib import Path

from data_pipeline.files import is_mount
from data_pipeline.paths import path_argument
from data_pipeline.shown import shown
from pretrain.commands.files_to_write import check_files_to_write
from pretrain.errors import ConfigurationError

EXPORTS = "the folder of a checkpoint, of an export, or of Hugging Face's with a tokenizer of sentencepiece"

LARGEST_COUNT = 2**31 - 1
"""Of whatever is counted, nobody has as much; larger numbers are none to torch or to the standard library."""
LARGEST_PENALTY = 10
"""Lengths to powers far above it are too large or too small for float64."""
LARGEST_WEIGHT = 1000
"""Of a language model, and of a word: far above it nothing else counts."""


def add_model(parser: argparse.ArgumentParser, besides: str = "the folder of a checkpoint") -> None:
    """It declares which checkpoint is used; `besides` says what else than a run may stand there."""
    parser.add_argument(
        "model",
        type=path_argument,
        metavar="RUN[@TAG]",
        help="folder of a run: its newest certified checkpoint, else its newest; with @TAG, that one, for example "
        f"runs/demo@step00001200-a3; or {besides}",
    )


def add_beam(parser: argparse.ArgumentParser, default: str) -> None:
    """It declares how wide the search is; `default` says how wide by itself."""
    parser.add_argument(
        "--beam", type=count, metavar="N", help=f"hypotheses side by side; 1: greedy ({default})"
    )


def add_length_penalty(parser: argparse.ArgumentParser) -> None:
    """It declares how translations are compared."""
    parser.add_argument(
        "--length-penalty",
        type=penalty,
        metavar="A",
        help="compare log-probabilities over the number of tokens to the power A; more prefers longer translations "
        "(1.0)",
    )


def add_language_model(parser: argparse.ArgumentParser) -> None:
    """It declares what takes part in the search for transcripts."""
    add = parser.add_argument
    add(
        "--lm",
        type=path_argument,
        metavar="FILE",
        help="language model of words: ARPA, also compressed, or a binary file of kenlm's (needs kenlm)",
    )
    add("--lm-weight", type=weight, metavar="W", help="add W times its log-probability of the words (0.5)")
    add("--word-bonus", type=weight, metavar="B", help="with --lm, add B for each word, in nats (1.5)")


def check_paths(options: argparse.Namespace) -> None:
    """It looks at paths before torch is imported, which takes seconds; whoever opens them says the rest.

    Raises ConfigurationError for a model that is not there, for an `--out` that is, and what `check_files_to_write`
    does.
    """
    model, out = getattr(options, "model", None), getattr(options, "out", None)
    if model is not None and not model.is_dir():
        run = str(model).rpartition("@")[0]
        if model.exists():
            raise ConfigurationError(f"{shown(model)}: is a file; give the folder of a run or a model")
        if not run or not Path(run).is_dir():
            raise ConfigurationError(f"{shown(run or model)}: there is no such folder")
    if out is not None and _is_taken(Path(os.path.realpath(out))):
        raise ConfigurationError(
            f"--out {shown(out)}: is there already, and is no empty folder; choose another folder"
        )
    if out is not None and out.is_dir() and is_mount(out.resolve()):
        raise ConfigurationError(
            f"--out {shown(out)}: is where a file system is mounted, and no folder can be put in its place; choose "
            "one in it"
        )
    check_files_to_write(options)


def _is_taken(path: Path) -> bool:
    """It tells whether anything but an empty folder is there; a link that is left in `path` leads nowhere."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def count(text: str) -> int:
    """It reads an argument that must be a whole number above zero."""
    number = int(text)
    if not 1 <= number <= LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"must be from 1 to {LARGEST_COUNT}, not {number}")
    return number


def penalty(text: str) -> float:
    """It reads the power of a length."""
    number = float(text)
    if not abs(number) <= LARGEST_PENALTY:  # nor is NaN
        raise argparse.ArgumentTypeError(f"must be from -{LARGEST_PENALTY} to {LARGEST_PENALTY}, not {text}")
    return number


def weight(text: str) -> float:
    """It reads what something counts in a score."""
    number = float(text)
    if not abs(number) <= LARGEST_WEIGHT:  # nor is NaN
        raise argparse.ArgumentTypeError(f"must be from -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}, not {text}")
    return number
