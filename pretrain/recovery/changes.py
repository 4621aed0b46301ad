"""Which settings a run goes on with that it has not had before.

They are compared with those of the checkpoint that it goes on from: weights and watchdog come from there, and
`config.toml` in the folder of a run is a file that people edit.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.parsing import read_whole
from pretrain.checkpoint.lifecycle import candidates
from pretrain.config.loader import changed_settings, dump_config
from pretrain.config.run import RunConfig
from pretrain.recovery.resume import in_words
from pretrain.run_folder import CHECKPOINTS, CONFIG

PLACE = {"run.folder", "run.name"}
"""These say where a run lies."""


def changes_of(config: RunConfig, tag: str | None) -> tuple[dict[str, str], str]:
    """It returns the settings that have changed, each with both values, and a line that tells them; empty if none.

    `tag` is the checkpoint that was asked for, if one was.
    """
    folder, now = config.run_folder, dump_config(config)
    had = list(filter(None, map(_text, _configurations(folder, tag))))
    if not had or not (changes := changed_settings(had[0], now)):
        return {}, ""
    note = f"settings have changed: {in_words(changes)}"
    if changes.keys() - PLACE and not changed_settings(had[0], had[-1]).keys() - PLACE:
        note += f"; {shlex.join(['surefoot', 'train', str(folder)])} takes them as they were"
    return changes, note


def _configurations(folder: Path, tag: str | None) -> Iterator[Path]:
    """It yields where the settings of a run may stand: those that count first, `config.toml` of its folder last."""
    checkpoints = folder / CHECKPOINTS
    newest = map(str, candidates(checkpoints).sealed[:1])
    for name in [tag] if tag else newest:
        yield checkpoints / name / CONFIG
    yield folder / CONFIG


def _text(path: Path) -> str:
    """It returns what a file holds, and nothing where it cannot be read."""
    try:
        return read_whole(path, follow=False).decode(errors="backslashreplace")
    except OSError:
        return ""
