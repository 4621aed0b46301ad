"""`surefoot convert` writes the folder of a run: configuration, ledger, metrics and one checkpoint."""

import argparse
import json
import os
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from data_pipeline.files import copy_file, open_regular, replace_file
from data_pipeline.paths import escaped
from data_pipeline.shown import shown
from pretrain.checkpoint.compatibility import architecture_of
from pretrain.checkpoint.conversion import convert, in_words
from pretrain.checkpoint.lifecycle import update_latest, write_readme
from pretrain.checkpoint.manifest import CheckpointLayout
from pretrain.checkpoint.output import written
from pretrain.checkpoint.saved_tensors import read_from
from pretrain.checkpoint.sealed import SealedCheckpoint, open_sealed
from pretrain.config.loader import changed_settings, dump_config, load_config
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.ledger.file import LedgerFile, read_ledger
from pretrain.ledger.record import Kind, record
from pretrain.plan.plan import plan
from pretrain.run_folder import CHECKPOINTS, CONFIG, LEDGER, METRICS


def run(options: argparse.Namespace) -> int:
    """It converts a checkpoint and says what came of it."""
    source = open_sealed(options.model)
    config, data = wanted(source, options)
    with written(options.out, source.manifest.total_bytes) as folder:
        layout = convert(source, config, data, folder / CHECKPOINTS)
        update_latest(folder / CHECKPOINTS, certified=False)
        write_readme(folder / CHECKPOINTS)
        replace_file(folder / CONFIG, dump_config(config))
        copy_history(source, folder)
        append_conversion(source, layout, folder / LEDGER)
    out = shown(options.out)
    print(f"{out}: {source.manifest.tag} in {in_words(layout)}; `surefoot train {out}` goes on with it")
    return 0


def wanted(source: SealedCheckpoint, options: argparse.Namespace) -> tuple[RunConfig, int]:
    """It returns the configuration of the new run, and its number of data-parallel ranks.

    Raises ConfigurationError for a layout that cannot be.
    """
    place = options.out.absolute()
    given = {
        "parallel.tensor": options.tensor,
        "parallel.pipeline": options.pipeline,
        "parallel.zero_stage": options.zero_stage,
        "precision.dtype": options.dtype,
        "run.folder": json.dumps(escaped(place.parent)),
        "run.name": json.dumps(place.name),
    }
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    config = load_config(source.folder / CONFIG, [*options.set, *overrides])
    if architecture_of(config) != source.manifest.config_digest:
        changed = changed_settings(dump_config(source.config), dump_config(config))
        keys = ", ".join(key for key in changed if key.startswith(("model.", "data."))) or "--set"
        raise ConfigurationError(f"{keys}: would make another model than {shown(source.folder)} holds")
    if config.optimizer.kind != source.manifest.optimizer:
        raise ConfigurationError(
            f"optimizer.kind = {config.optimizer.kind}: the state is that of {source.manifest.optimizer}"
        )
    data = options.data or source.manifest.layout.data
    plan(config, config.parallel.model_size * data)
    return config, data


def copy_history(source: SealedCheckpoint, folder: Path) -> None:
    """It copies what the run has recorded, as far as that is there: the new one goes on with it.

    Raises OSError, and CheckpointError where it cannot be read.
    """
    for name in (LEDGER, METRICS):
        if source.run_folder and os.path.lexists(path := source.run_folder / name):
            with read_from(path):
                if name == LEDGER:
                    read_ledger(path)  # a fault is told by its name, and not by that of the copy
                old = open_regular(path)
            with old:
                copy_file(old, folder / name)


def append_conversion(source: SealedCheckpoint, layout: CheckpointLayout, path: Path) -> None:
    """It has the ledger tell where the checkpoint comes from; where there is no ledger it begins one.

    Raises:
        OSError: it cannot be written.
        CheckpointError: the ledger of the run was changed.
    """
    manifest, ledger = source.manifest, LedgerFile(path)
    with closing(ledger):
        state = replace(manifest.state, attempt=ledger.history.attempt or manifest.state.attempt)
        if manifest.run_id not in ledger.history.run_ids:
            facts = {"host": socket.gethostname(), "layout": in_words(manifest.layout)}
            ledger.append(record(Kind.RUN_START, state, run_id=manifest.run_id, **facts))
        origin = f"{shown(source.folder)}, {in_words(manifest.layout)}"
        ledger.append(record(Kind.CONVERTED, state, tag=manifest.tag, source=origin, layout=in_words(layout)))
