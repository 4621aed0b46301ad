"""Commands that use models have these arguments in common."""

import argparse

from data_pipeline.paths import path_argument

EXPORTS = "the folder of a checkpoint, of an export, or of Hugging Face's with a tokenizer of sentencepiece"


def add_model(parser: argparse.ArgumentParser, besides: str = "the folder of a checkpoint") -> None:
    """It declares which checkpoint is used; `besides` says what else than a run may stand there."""
    parser.add_argument(
        "model",
        type=path_argument,
        metavar="RUN[@TAG]",
        help="folder of a run: its newest certified checkpoint, else its newest; with @TAG, that one, for example "
        f"runs/demo@step00001200-a3; or {besides}",
    )


def count(text: str) -> int:
    """It reads an argument that must be a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number
