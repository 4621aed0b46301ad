"""This module reads a run's configuration from TOML, explains everything that is wrong with it, and writes it back.

Relative paths in a configuration are relative to the current directory, as with other launchers.
"""

import json
import math
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from data_pipeline.parsing import parsed_as, read_whole, reason
from data_pipeline.paths import escaped
from data_pipeline.shown import masked, shown
from pretrain.config.problems import explain, toml
from pretrain.config.run import RunConfig, tasks_meant, with_kind_of_data
from pretrain.errors import ConfigurationError, Problem
from pretrain.run_folder import CHECKPOINTS, CONFIG

Table = dict[str, Any]

MOST_BITS = 53
"""Of a number: larger whole ones are not exact everywhere, and nothing counts so far; products of larger fractions are
too large for fp32, which torch refuses."""
BITS = {"run.seed": 63}
"""Other bounds: these numbers count nothing."""

TENSORS = "*.safetensors"
"""Files of these names lie in the folder of a checkpoint or an export, and not in that of a run."""

OVERRIDE_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the TOML file at `path` and apply overrides of the form `section.key=value`, later ones last.

    The folder of a run stands for the settings that the run has had last, and for the run itself, wherever it lies now.
    A value is read as TOML; a bare word counts as a string. Raises ConfigurationError with all problems.
    """
    path = Path(path)
    return config_of(path, *read_settings(path, overrides))


def config_of(path: Path, table: Table, problems: Sequence[Problem]) -> RunConfig:
    """It returns the configuration that was read from a file. Raises ConfigurationError with all problems, those of the
    reading first."""
    with parsed_as(ConfigurationError, path):
        config, found = validated(table)
    problems = [*problems, *found]
    if not tasks_meant(table):  # [data] cannot be judged without a task
        problems = [problem for problem in problems if problem.key.partition(".")[0] != "data"]
    if problems or config is None:
        raise ConfigurationError(f"{shown(path)}: {count(problems)}", problems)
    return config


def meant_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig | None:
    """It returns the configuration that was meant where values are merely of another type, such as "8" for 8; None
    where more is wrong. It is good for telling what else is wrong, and for nothing more."""
    table, problems = read_settings(path, overrides)
    try:
        return None if problems else RunConfig.model_validate(with_kind_of_data(table), strict=False)
    except (ValidationError, ArithmeticError):
        return None


def read_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[Table, list[Problem]]:
    """It returns the settings with the overrides, and what is wrong with those. Raises ConfigurationError."""
    table = settings_of_run(path) if path.is_dir() else read_toml(path)
    return table, apply_overrides(table, overrides)


def settings_file(path: Path) -> Path:
    """It returns the file that holds the settings which a path stands for."""
    return path / CONFIG if path.is_dir() else path


def validated(table: Table) -> tuple[RunConfig | None, list[Problem]]:
    """It returns the configuration in a table, or what is wrong with it."""
    problems = [
        Problem(key, f"must be a number below 2^{BITS.get(key, MOST_BITS)}", "", toml(value))
        for key, value in too_large(table)
    ]
    data = table.get("data")
    if isinstance(data, dict) and "kind" in data:
        problems.append(Problem("data.kind", "unknown key", "the kind of data follows from model.kind", ""))
    if problems:
        return None, problems
    try:
        # Strict JSON mode: no silent conversion such as true -> 1 or "8" -> 8, yet lists become tuples.
        text = json.dumps(with_kind_of_data(table), default=str)
        return RunConfig.model_validate_json(text, strict=True), []
    except ValidationError as error:
        return None, explain(RunConfig, error)


def too_large(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """It yields the keys of numbers that no run reaches, with them: what is computed of them may know no bounds."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from too_large(below, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from too_large(below, f"{key}[{number}]")
    elif isinstance(value, int | float) and 2 ** BITS.get(key, MOST_BITS) <= abs(value) < math.inf:
        yield key, value


def settings_of_run(folder: Path) -> Table:
    """It returns the settings that a run has had last.

    Raises ConfigurationError where the folder holds no run, but nothing, or a model: checkpoints and exports have
    settings beside their tensors as well, and a run in one would begin with other weights than those.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigurationError(
            f"{folder}: a folder without {CONFIG}, so no run is in it; give a TOML file, or a run"
        )
    place = folder.absolute()
    if any(folder.glob(TENSORS)):
        raise ConfigurationError(f"{shown(folder)}: holds tensors of a model and is no run; {_way_on(place)}")
    table = read_toml(folder / CONFIG)
    run = table.get("run")
    if isinstance(run, dict) and Path(str(run.get("folder")), str(run.get("name"))).absolute() != place:
        run |= {"folder": escaped(place.parent), "name": place.name}
    return table


def _way_on(place: Path) -> str:
    """It says what to do instead of training where a model lies."""
    if place.parent.name == CHECKPOINTS:
        run = shlex.quote(str(place.parent.parent))
        return f"`surefoot train {shown(run)} --resume {shown(place.name)}` goes on from this checkpoint"
    return f"{shown(place / CONFIG)} and a run.name of its own begin one with its settings and new weights"


def dump_config(config: RunConfig) -> str:
    """It returns the TOML of the resolved configuration; loading that gives an equal one."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude={"data": {"kind"}}))


def settings(config: RunConfig) -> Table:
    """It returns the resolved configuration by dotted key."""
    return _leaves(tomllib.loads(dump_config(config)))


def read_toml(path: Path) -> Table:
    """Parse a TOML file. Raises ConfigurationError, which names file and line."""
    try:
        with parsed_as(ConfigurationError, path):
            return toml_document(read_whole(path).decode(), path)
    except OSError as error:
        raise ConfigurationError(f"{shown(path)}: cannot be read: {error.strerror}{_resumed(path)}") from None


def _resumed(path: Path) -> str:
    """It says how a run goes on from a checkpoint, where one was named as commands that use models have it."""
    named = re.fullmatch(r"(.+)@(step\d+-a\d+)", str(path), re.DOTALL)
    return (
        f"; `surefoot train {shown(shlex.quote(named[1]))} --resume {named[2]}` goes on from it"
        if named
        else ""
    )


def toml_document(text: str, path: Path) -> Table:
    """It parses TOML, whose line ends may be those of Windows. Raises ConfigurationError, which names the line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, position = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", position)
        where = f"{shown(path)}:{line[1]}" if line else f"{shown(path)}: at the end"
        raise ConfigurationError(f"{where}: not valid TOML: {shown(message)}") from None


def apply_overrides(table: Table, overrides: Sequence[str]) -> list[Problem]:
    """It applies overrides to a table, later ones last, and returns what is wrong with them."""
    return [problem for text in overrides if (problem := apply_override(table, text))]


def apply_override(table: Table, text: str) -> Problem | None:
    """Set one `section.key=value` in `table`; if anything is wrong with it, that is returned instead."""
    key, separator, value = text.partition("=")
    named = f"--set {shown(masked(text))}"
    key = key.strip()
    if not separator or not OVERRIDE_KEY.fullmatch(key):
        return Problem(
            f"--set {shown(masked(text))}",
            "an override has the form section.key=value",
            "--set run.steps=1000",
        )
    try:
        parsed = parse_value(value.strip())
    except ValueError as error:
        rule = f"the value is not TOML: {reason(error)}"
        return Problem(named, rule, "strings with brackets need quotes")
    *parents, leaf = key.split(".")
    for depth, name in enumerate(parents):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return Problem(
                f"--set {shown(masked(text))}", f"{'.'.join(parents[: depth + 1])} is a value, not a section"
            )
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
    except RecursionError as error:
        raise ValueError(reason(error)) from None


def count(problems: Sequence[Problem]) -> str:
    return "1 fault" if len(problems) == 1 else f"{len(problems)} faults"


def changed_settings(before: str, now: str) -> dict[str, str]:
    """It returns the keys that two resolved configurations differ in, with both values.

    What is not TOML differs in nothing.
    """
    try:
        old, new = _leaves(tomllib.loads(before)), _leaves(tomllib.loads(now))
    except (ValueError, RecursionError):
        return {}
    return {
        key: f"{old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    }


def former_settings(before: str, now: str) -> list[str]:
    """It returns the words for `--set` that make the resolved configuration `now` the one of `before`.

    There are none where a key was not set, or had a value that takes more than a word.
    """
    old, new = _leaves(tomllib.loads(before)), _leaves(tomllib.loads(now))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if any(isinstance(old.get(key), list | None) for key in changed):
        return []
    return [tomli_w.dumps({"value": old[key]}).replace("value = ", f"{key}=", 1).strip() for key in changed]


def _leaves(table: Table, prefix: str = "") -> Table:
    """It flattens a table: dotted key -> value."""
    found: Table = {}
    for name, value in table.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
