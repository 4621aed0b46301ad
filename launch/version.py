"""`surefoot --version` says which Surefoot this is and what it found to run on, without importing any of it."""

import argparse
import platform
from typing import Any

from launch.children import ROOT
from pretrain.runtime.libraries import installed_version

FOUNDATIONS = ("torch", "deepspeed", "megatron-core")


class PrintVersion(argparse.Action):
    """The option that asks for it."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        """It prints two lines and ends the program."""
        found = {name: installed_version(name) for name in FOUNDATIONS}
        versions = ", ".join(f"{name} {version}" for name, version in found.items())
        print(f"surefoot {installed_version('surefoot')} in {ROOT}")
        print(f"python {platform.python_version()}, {versions}".replace("unknown", "not installed"))
        parser.exit()
