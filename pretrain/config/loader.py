"""This module reads a run's configuration from TOML, explains everything that is wrong with it, and writes it back.

Relative paths in a configuration are relative to the current directory, as with other launchers.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from data_pipeline.paths import escaped
from pretrain.config.problems import explain
from pretrain.config.run import RunConfig, tasks_meant, with_kind_of_data
from pretrain.errors import ConfigurationError, Problem
from pretrain.run_folder import CONFIG

Table = dict[str, Any]

OVERRIDE_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the TOML file at `path` and apply overrides of the form `section.key=value`, later ones last.

    The folder of a run stands for the settings that the run has had last, and for the run itself, wherever it lies now.
    A value is read as TOML; a bare word counts as a string. Raises ConfigurationError with all problems.
    """
    table = settings_of_run(Path(path)) if Path(path).is_dir() else read_toml(Path(path))
    problems = [problem for text in overrides if (problem := apply_override(table, text))]
    data = table.get("data")
    if isinstance(data, dict) and "kind" in data:
        problems.append(Problem("data.kind", "unknown key", "the kind of data follows from model.kind", ""))
    try:
        # Strict JSON mode: no silent conversion such as true -> 1 or "8" -> 8, yet lists become tuples.
        text = json.dumps(with_kind_of_data(table), default=str)
        config = RunConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems += explain(RunConfig, error)
    if not tasks_meant(table):  # [data] cannot be judged without a task
        problems = [problem for problem in problems if problem.key.partition(".")[0] != "data"]
    if problems:
        raise ConfigurationError(f"{path}: {count(problems)}", problems)
    return config


def settings_of_run(folder: Path) -> Table:
    """It returns the settings that a run has had last. Raises ConfigurationError where the folder holds no run."""
    if not (folder / CONFIG).is_file():
        raise ConfigurationError(
            f"{folder}: a folder without {CONFIG}, so no run is in it; give a TOML file, or a run"
        )
    table = read_toml(folder / CONFIG)
    run, place = table.get("run"), folder.absolute()
    if isinstance(run, dict) and Path(str(run.get("folder")), str(run.get("name"))).absolute() != place:
        run |= {"folder": escaped(place.parent), "name": place.name}
    return table


def dump_config(config: RunConfig) -> str:
    """It returns the TOML of the resolved configuration; loading that gives an equal one."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude={"data": {"kind"}}))


def settings(config: RunConfig) -> Table:
    """It returns the resolved configuration by dotted key."""
    return _leaves(tomllib.loads(dump_config(config)))


def read_toml(path: Path) -> Table:
    """Parse a TOML file. Raises ConfigurationError, which names file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        message, _, position = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", position)
        where = f"{path}:{line[1]}" if line else f"{path}: at the end"
        raise ConfigurationError(f"{where}: not valid TOML: {message}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def apply_override(table: Table, text: str) -> Problem | None:
    """Set one `section.key=value` in `table`; if anything is wrong with it, that is returned instead."""
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not OVERRIDE_KEY.fullmatch(key):
        return Problem(f"--set {text}", "an override has the form section.key=value", "--set run.steps=1000")
    try:
        parsed = parse_value(value.strip())
    except ValueError as error:
        return Problem(
            f"--set {text}", f"the value is not TOML: {error}", "strings with brackets need quotes"
        )
    *parents, leaf = key.split(".")
    for depth, name in enumerate(parents):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return Problem(f"--set {text}", f"{'.'.join(parents[: depth + 1])} is a value, not a section")
    table[leaf] = parsed
    return None


def parse_value(text: str) -> Any:
    """Read a TOML value, or a bare word as a string. Raises ValueError."""
    try:
        parsed = tomllib.loads(f"value = {text}")
        if parsed.keys() == {"value"}:
            return parsed["value"]
        raise ValueError("it holds more than one line")
    except tomllib.TOMLDecodeError as error:
        if text and text[0] not in "[{\"'" and "\n" not in text:
            return text
        raise ValueError(str(error).partition(" (at ")[0]) from None


def count(problems: Sequence[Problem]) -> str:
    return "1 fault" if len(problems) == 1 else f"{len(problems)} faults"


def changed_settings(before: str, now: str) -> dict[str, str]:
    """It returns the keys that two resolved configurations differ in, with both values.

    What is not TOML differs in nothing.
    """
    try:
        old, new = _leaves(tomllib.loads(before)), _leaves(tomllib.loads(now))
    except tomllib.TOMLDecodeError:
        return {}
    return {
        key: f"{old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    }


def _leaves(table: Table, prefix: str = "") -> Table:
    """It flattens a table: dotted key -> value."""
    found: Table = {}
    for name, value in table.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
