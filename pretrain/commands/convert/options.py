"""make a run for another layout from a checkpoint: other ranks, ZeRO stage or precision"""

import argparse

from data_pipeline.paths import path_argument
from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import add_model, count


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot convert`."""
    parser = CommandLine(
        prog="surefoot convert",
        description="Write a checkpoint anew for another layout, as a run that `surefoot train DIR` goes on with. What "
        "is not named stays as it was. `surefoot train` does the same by itself when a run is resumed in another "
        'layout (checkpoint.on_other_layout = "convert"); this does it ahead, without its ranks.',
        epilog="exit codes: 0 done, 2 configuration or command line, 4 no usable checkpoint, or no room for it",
    )
    add_model(parser)
    parser.add_argument(
        "--out", required=True, type=path_argument, metavar="DIR", help="folder of the new run"
    )
    parser.add_argument("--tensor", type=count, metavar="N", help="tensor-parallel ranks")
    parser.add_argument("--pipeline", type=count, metavar="N", help="pipeline stages")
    parser.add_argument("--data", type=count, metavar="N", help="data-parallel ranks")
    parser.add_argument("--zero-stage", type=int, choices=range(4), metavar="N", help="ZeRO stage, 0 to 3")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="precision that is computed in")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a key of the run's configuration, such as data.micro_batch_size; may be repeated",
    )
    return parser
