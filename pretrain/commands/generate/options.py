"""have a language model write text, or go on with yours"""

import argparse
import math

from data_pipeline.paths import path_argument
from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import EXPORTS, add_model, count


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot generate`."""
    parser = CommandLine(
        prog="surefoot generate",
        description="Write text with a trained language model: the prompt and what follows it, as it comes. Without a "
        "prompt the model begins a text. It ends where the model ends it, or with --max-tokens. Standard output gets "
        "the text and nothing else; on a terminal, what would control it is spelled out.",
        epilog="exit codes: 0 done, 2 configuration or command line, 3 data, 4 no usable checkpoint, 130 interrupted",
    )
    add_model(parser, EXPORTS)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="how the text begins")
    prompt.add_argument(
        "--file", type=path_argument, metavar="FILE", help="or the file that it begins with, UTF-8"
    )
    add = parser.add_argument
    add("--max-tokens", type=count, default=256, metavar="N", help="tokens to write at most (%(default)s)")
    add(
        "--temperature",
        type=temperature,
        default=0.8,
        metavar="T",
        help="how freely tokens are drawn; 0: always the likeliest one (%(default)s)",
    )
    add("--top-k", type=count, metavar="K", help="draw from the K likeliest tokens alone (all)")
    add(
        "--top-p",
        type=share,
        default=0.95,
        metavar="P",
        help="draw from the likeliest tokens alone that have this probability together (%(default)s)",
    )
    add("--seed", type=seed, metavar="N", help="the same seed writes the same text (drawn, and told)")
    return parser


def temperature(text: str) -> float:
    """It reads an argument that must be a number from 0 on."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return number


def share(text: str) -> float:
    """It reads an argument that must be above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return number


def seed(text: str) -> int:
    """It reads an argument that a random generator can begin with."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2^63 - 1, not {text}")
    return number
