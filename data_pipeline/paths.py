"""Paths that people write: `~` and `$NAME` mean in a file of settings what a shell makes of them on a command line."""

import argparse
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer
from pydantic_core import PydanticCustomError

VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})")


def expanded(text: str) -> str:
    """It returns a path with its variables and the home folder in place; `$$` is a dollar sign.

    Raises:
        ValueError: a variable has no value, or nobody has such a home folder.
    """
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


def path_argument(text: str) -> Path:
    """It reads a path of a command line."""
    return Path(location_argument(text))


def location_argument(text: str) -> str:
    """It reads a path or pattern of a command line: what is there is meant as it stands, the shell saw to the rest.

    It does not where a path stands behind `--out=`, nor within quotes.
    """
    if os.path.lexists(text):
        return text
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _expanded_setting(value: Any) -> Any:
    """It expands the text of a setting; what is no text is for pydantic to judge."""
    if not isinstance(value, str):
        return value
    try:
        return expanded(value)
    except ValueError as error:
        raise PydanticCustomError("expansion", "{reason}", {"reason": str(error)}) from None


PathSetting = Annotated[Path, BeforeValidator(_expanded_setting), PlainSerializer(escaped, when_used="json")]
"""The type of settings that are paths."""
LocationSetting = Annotated[
    str, BeforeValidator(_expanded_setting), PlainSerializer(escaped, when_used="json")
]
"""The type of settings that are paths or URLs."""
