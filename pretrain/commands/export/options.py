"""write a checkpoint as plain tensors, or as a model of Hugging Face's"""

import argparse

from data_pipeline.paths import path_argument
from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import add_model


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot export`."""
    parser = CommandLine(
        prog="surefoot export",
        description="Write the weights of a checkpoint of any layout into a folder to be used elsewhere: joined, "
        "without padding, with sigmaReparam and low-rank attention folded into plain matrices.",
        epilog="exit codes: 0 done, 2 no architecture holds the model, or the command line, 3 the tokenizer cannot be "
        "converted, 4 no usable checkpoint, or no room",
    )
    add_model(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=("safetensors", "huggingface"),
        help="tensors by our own names, of every model; or GPT-2, GPT-NeoX or Llama for `transformers`, whichever "
        "holds the model, with the tokenizer",
    )
    parser.add_argument("--out", required=True, type=path_argument, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="type of the numbers (the precision that the run computes in)",
    )
    return parser
