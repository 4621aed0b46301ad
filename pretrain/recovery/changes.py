"""Which settings a run goes on with that it has not had before.

They are compared with those of the checkpoint that it goes on from: weights and watchdog come from there, and
`config.toml` in the folder of a run is a file that people edit.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.parsing import read_whole
from data_pipeline.shown import shown
from pretrain.checkpoint.lifecycle import candidates
from pretrain.config.loader import changed_settings, dump_config, former_settings
from pretrain.config.run import RunConfig
from pretrain.recovery.resume import in_words
from pretrain.run_folder import CHECKPOINTS, CONFIG

PLACE = {"run.folder", "run.name"}
"""These say where a run lies."""
MOST_WORDS = 8
"""More settings than these are not typed again one by one."""


def changes_of(config: RunConfig, tag: str | None) -> tuple[dict[str, str], str]:
    """It returns the settings that have changed, each with both values, and a line that tells them, and how the run
    goes on with those that it had; empty if none.

    `tag` is the checkpoint that was asked for, if one was.
    """
    folder, now = config.run_folder, dump_config(config)
    for path in _configurations(folder, tag):
        if (had := _text(path)) and (changes := changed_settings(had, now)):
            back = _way_back(folder, path, had, now) if changes.keys() - PLACE else ""
            return changes, f"settings have changed: {in_words(changes)}{back}"
        if had:
            break
    return {}, ""


def _way_back(folder: Path, path: Path, had: str, now: str) -> str:
    """It says what brings back the settings `had` of the file at `path`, and the weights that they have made.

    `config.toml` of the run does not: it is of this start, as soon as anybody reads this.
    """
    former = [word for word in former_settings(had, now) if word.partition("=")[0] not in PLACE]
    resumed = ["--resume", path.parent.name] if path.parent.parent.name == CHECKPOINTS else []
    if not 0 < len(former) <= MOST_WORDS:
        return f"; {shown(path)} has them as they were" if resumed else ""
    words = ["surefoot", "train", str(folder), *resumed]
    for setting in former:
        words += ["--set", setting]
    return f"; to go on as before: {shlex.join(words)}"


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
