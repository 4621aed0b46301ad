"""Commands that use models are another program, `python -m pretrain.commands`; this is what `surefoot` knows of them.

Their options are declared without torch, in modules that are imported by name: which there are, their files say.
"""

import argparse
from importlib import import_module

from data_pipeline.program import commands_in, package_of
from launch.children import ROOT

MODULE = "pretrain.commands"


def model_commands() -> dict[str, str]:
    """It returns them by name, each with a line about it."""
    return commands_in(ROOT.joinpath(*MODULE.split(".")), "options.py")


def parser_of(command: str) -> argparse.ArgumentParser:
    """It returns the parser of one of them."""
    parser: argparse.ArgumentParser = import_module(f"{MODULE}.{package_of(command)}.options").parser()
    return parser
