"""Commands that use models have these arguments in common."""

import argparse

from data_pipeline.paths import path_argument


def add_model(parser: argparse.ArgumentParser) -> None:
    """It declares which checkpoint is used."""
    parser.add_argument(
        "model",
        type=path_argument,
        metavar="RUN[@TAG]",
        help="folder of a run: its newest certified checkpoint, else its newest; with @TAG, that one, for example "
        "runs/demo@step00001200-a3; or the folder of a checkpoint",
    )


def count(text: str) -> int:
    """It reads an argument that must be a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number
