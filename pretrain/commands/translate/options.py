"""have a model translate sentences, a line each"""

import argparse

from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import add_beam, add_length_penalty, add_model, count


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot translate`."""
    parser = CommandLine(
        prog="surefoot translate",
        description="Translate standard input, UTF-8 with a sentence a line, to standard output, line by line: an "
        "empty line stays one. Sentences are read ahead and translated together; what comes out does not depend on "
        "that. On a terminal each line is translated as it comes.",
        epilog="exit codes: 0 done, 2 configuration or command line, 3 data, 4 no usable checkpoint, 130 interrupted",
    )
    add_model(parser, "the folder of a checkpoint, or of an export with tensors by our own names")
    add_beam(parser, "5")
    add_length_penalty(parser)
    add = parser.add_argument
    add(
        "--batch-size",
        type=count,
        default=64,
        metavar="N",
        help="sentences translated together (%(default)s)",
    )
    add(
        "--cut",
        action="store_true",
        help="translate the beginning of a sentence that is longer than the model was trained for, instead of ending",
    )
    add("--json", action="store_true", help="print a JSON object a line: source, translation, scores")
    return parser
