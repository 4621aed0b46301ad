"""`surefoot import` writes the folder of a run at step 0."""

import argparse

from data_pipeline.shown import shown
from pretrain.config.loader import Table, apply_overrides, count, read_settings
from pretrain.errors import ConfigurationError
from pretrain.export.importing import import_huggingface
from pretrain.tasks.registry import TASKS


def run(options: argparse.Namespace) -> int:
    """It imports a model and says what came of it."""
    config = import_huggingface(options.folder, options.out, settings_of(options))
    parameters = sum(layer.size for layer in config.model.outline(config.data).layers)
    print(
        f"{shown(options.out)}: {config.model.kind} with {parameters:,} parameters at step 0; `surefoot train "
        f"{shown(options.out)}` goes on with it"
    )
    for name in TASKS[config.model.kind].source.companion_files:
        if not (options.folder / name).is_file():
            print(
                f"its {name} is that of the data; the model came without one, so nothing says that they agree"
            )
    return 0


def settings_of(options: argparse.Namespace) -> Table:
    """It returns the settings that the command line gives. Raises ConfigurationError."""
    table: Table = {}
    problems = apply_overrides(table, options.set)
    if options.config:
        table, problems = read_settings(options.config, options.set)
    if problems:
        raise ConfigurationError(count(problems), problems)
    return table
