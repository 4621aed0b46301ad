"""make a run of a model that was trained elsewhere, to go on with its training"""

import argparse

from data_pipeline.paths import path_argument
from data_pipeline.shown import CommandLine


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot import`."""
    parser = CommandLine(
        prog="surefoot import",
        description="Make a run at step 0 with the weights of a model of Hugging Face's: GPT-2, GPT-NeoX or Llama, in "
        "files of safetensors. `surefoot train RUN` goes on from there.",
        epilog="exit codes: 0 done, 2 the model cannot be trained on here, configuration or command line, 3 data, "
        "4 tensors are missing or damaged, or no room",
    )
    parser.add_argument("format", choices=("huggingface",), help="what the model is stored as")
    parser.add_argument(
        "folder", type=path_argument, metavar="DIR", help="folder with config.json and the tensors"
    )
    parser.add_argument(
        "--out", required=True, type=path_argument, metavar="RUN", help="folder of the new run"
    )
    parser.add_argument(
        "--config",
        type=path_argument,
        metavar="TOML",
        help="the settings of the run; [model] follows from the folder and may be left out",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="set a key of the configuration, such as data.sources; may be repeated",
    )
    return parser
