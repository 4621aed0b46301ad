"""have a model transcribe recorded speech"""

import argparse

from data_pipeline.paths import path_argument
from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import add_beam, add_language_model, add_model, count


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot transcribe`."""
    parser = CommandLine(
        prog="surefoot transcribe",
        description="Transcribe recordings, a line each, in the order in which they are given: the transcript, and of "
        "several files before it the name and a tab. Recordings are read ahead and transcribed together; what comes "
        "out does not depend on that. A file that cannot be used is named, the others go on, and the command ends "
        "with 3.",
        epilog="exit codes: 0 done, 2 configuration or command line, 3 data, 4 no usable checkpoint, 130 interrupted",
    )
    add_model(parser, "the folder of a checkpoint, or of an export with tensors by our own names")
    add = parser.add_argument
    add(
        "audio",
        type=path_argument,
        nargs="+",
        metavar="AUDIO",
        help="recordings (WAV, FLAC, Ogg) of any rate and number of channels; none longer than the data of the run "
        "may be (data.max_seconds)",
    )
    add_beam(parser, "16")
    add_language_model(parser)
    add(
        "--batch-size",
        type=count,
        default=16,
        metavar="N",
        help="recordings transcribed together (%(default)s)",
    )
    add(
        "--json",
        action="store_true",
        help="print a JSON object a line: file, transcript, units with their times, scores; or file and error",
    )
    return parser
