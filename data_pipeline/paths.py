"""Paths that people write: `~` and `$NAME` mean in a file of settings what a shell makes of them on a command line."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer
from pydantic_core import PydanticCustomError

VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})")


def expanded(text: str) -> str:
    """It returns a path with its variables and the home folder in place; `$$` is a dollar sign.

    Raises:
        ValueError: it is empty, as where a variable has no value in a shell; a variable has none here; nobody has such
            a home folder, or there can be no such path.
    """
    if not text:
        raise ValueError("is empty; write . for the current directory")
    if "\0" in text:
        raise ValueError(f"{text!r} holds a NUL character, as no path can")
    path = VARIABLE.sub(_value, text)
    if not text.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found == path:
        user = path.partition("/")[0]
        why = (
            "HOME is not set, and this user has no home folder"
            if user == "~"
            else f"there is no user {user[1:]}"
        )
        raise ValueError(f"{user} stands for a home folder, but {why}; write the path in full")
    return found


def _value(match: re.Match[str]) -> str:
    dollar, *names = match.groups()
    if dollar:
        return "$"
    name = next(filter(None, names))
    value = os.path.expandvars(f"${{{name}}}")
    if value in ("", f"${{{name}}}"):
        raise ValueError(f"${name} is not set; set it, or write $$ for a dollar sign")
    return value


def escaped(path: object) -> str:
    """It writes a path so that `expanded` returns it as it is."""
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def expanded_path(text: str) -> str:
    """It returns the path of a file or folder on this machine, expanded.

    Raises:
        ValueError: it is a URL, or `expanded` refuses it.
    """
    if "://" in text:
        raise ValueError(
            f"{text} is a URL, and must be a path on this machine: of it a folder here would be made"
        )
    return expanded(text)


def path_argument(text: str) -> Path:
    """It reads a path of a command line."""
    return Path(_argument(text, expanded_path))


def location_argument(text: str) -> str:
    """It reads a path or pattern of a command line: what is there is meant as it stands, the shell saw to the rest.

    It does not where a path stands behind `--out=`, nor within quotes.
    """
    return _argument(text, expanded)


def _argument(text: str, expand: Callable[[str], str]) -> str:
    if os.path.lexists(text):
        return text
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _setting(expand: Callable[[str], str]) -> BeforeValidator:
    """It has the text of a setting expanded; what is no text is for pydantic to judge."""

    def expanded_setting(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return expand(value)
        except ValueError as error:
            raise PydanticCustomError("expansion", "{reason}", {"reason": str(error)}) from None

    return BeforeValidator(expanded_setting)


PathSetting = Annotated[Path, _setting(expanded_path), PlainSerializer(escaped, when_used="json")]
"""The type of settings that are paths."""
LocationSetting = Annotated[str, _setting(expanded), PlainSerializer(escaped, when_used="json")]
"""The type of settings that are paths or URLs."""
