"""tell how sharp the minimum is that a model stands in"""

import argparse

from data_pipeline.paths import location_argument
from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import EXPORTS, add_model, count

SAMPLES = 128


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot sharpness`."""
    parser = CommandLine(
        prog="surefoot sharpness",
        description="Tell the largest eigenvalues of the Hessian of the validation loss, and its trace, each with its "
        "error, in one process. Derivatives are exact, and by the parameters that training moves; of sigmaReparam, W "
        "and gamma.",
        epilog="exit codes: 0 done, 2 configuration or command line, 3 data, 4 no usable checkpoint, 130 interrupted",
    )
    add_model(parser, EXPORTS)
    parser.add_argument(
        "--data",
        type=location_argument,
        metavar="DIR",
        help="validation split of other data than the run's, prepared alike",
    )
    parser.add_argument(
        "--samples",
        type=count,
        default=SAMPLES,
        metavar="N",
        help=f"the loss is that of the first N samples of the validation split ({SAMPLES})",
    )
    parser.add_argument("--top", type=count, default=1, metavar="K", help="the K largest eigenvalues (1)")
    parser.add_argument(
        "--trace-vectors",
        type=count,
        default=16,
        metavar="N",
        help="random vectors, at least two, that the trace is estimated with; its error falls with their root (16)",
    )
    parser.add_argument("--fp64", action="store_true", help="compute in float64 in place of float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
