"""This module writes docs/configuration.md from the models of the configuration.

python -m launch.config_reference > docs/configuration.md
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from pretrain.config.keys import is_section, walk
from pretrain.config.run import RunConfig

HEADER = """# Configuration

A run is one TOML file; `surefoot check FILE` explains what it amounts to or what is wrong with it. Every key
can be overridden on the command line with `--set section.key=value`, where the value is TOML and a bare word
counts as a string. Relative paths are relative to the current directory. Unknown keys are refused.

This page is generated from the code by `python -m launch.config_reference`.
"""


def reference() -> str:
    """It returns the whole page."""
    return "\n".join([HEADER, *sections()])


def sections() -> Iterator[str]:
    """It yields each section with a table of its keys, parents first."""
    fields = list(walk(RunConfig))
    for key, field in fields:
        if not is_section(field):
            continue
        prefix = f"{key}[]." if get_origin(field.annotation) is tuple else f"{key}."
        own = [(name, below) for name, below in fields if name.startswith(prefix)]
        yield section(key, prefix, field, [(name.removeprefix(prefix), below) for name, below in own])


def section(key: str, prefix: str, field: FieldInfo, own: list[tuple[str, FieldInfo]]) -> str:
    """It writes one section; sections within it have tables of their own."""
    annotation: Any = field.annotation
    entry = get_args(annotation)[0] if prefix.endswith("[].") else annotation
    title = f"## `[[{key}]]`" if prefix.endswith("[].") else f"## `[{key}]`"
    rows = [row(name, below) for name, below in own if "." not in name and not is_section(below)]
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([title, "", (field.description or entry.__doc__ or "").strip(), "", *table, ""])


def row(name: str, field: FieldInfo) -> str:
    """It writes the line of one key."""
    default = "required" if field.is_required() else toml_default(field.default)
    meaning = (field.description or "").replace("\n", " ").replace("|", "\\|")
    return f"| `{name}` | {type_name(field.annotation)} | {default} | {meaning} |"


def toml_default(value: Any) -> str:
    """It writes a default as TOML, or `none`."""
    return "none" if value is None else f"`{json.dumps(value, default=str)}`"


def type_name(annotation: Any) -> str:
    """It names the type in words of TOML."""
    if get_origin(annotation) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    words = {int: "integer", float: "number", bool: "boolean"}
    choices = [part for part in get_args(annotation) if part is not type(None)]
    return " or ".join(map(type_name, choices)) or words.get(annotation, "string")


if __name__ == "__main__":
    print(reference(), end="")
