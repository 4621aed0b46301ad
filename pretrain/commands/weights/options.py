"""list the tensors of a checkpoint: `surefoot inspect RUN --weights`"""

import argparse

from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import add_model


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot weights`."""
    parser = CommandLine(
        prog="surefoot weights",
        description="List the weights and buffers of a checkpoint by their names in the whole model, whatever layout "
        "it was saved in: shape, type, Euclidean norm and SHA-256 of the values. One tensor at a time is read.",
        epilog="exit codes: 0 done, 2 configuration or command line, 4 no usable checkpoint, 130 interrupted",
    )
    add_model(parser)
    parser.add_argument("--moments", action="store_true", help="also what the optimizer keeps of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
