"""`surefoot export` writes a checkpoint into a folder to be used elsewhere."""

import argparse

from data_pipeline.shown import shown
from pretrain.export.export import export
from pretrain.export.source import open_source


def run(options: argparse.Namespace) -> int:
    """It exports a checkpoint and says what came of it."""
    source = open_source(options.model)
    exported = export(source, options.to, options.out, options.dtype)
    what = exported.architecture or "plain tensors"
    print(
        f"{shown(options.out)}: {source.manifest.tag} as {what}, {exported.numbers:,} numbers in {exported.tensors} "
        f"tensors, {exported.dtype}"
    )
    return 0
