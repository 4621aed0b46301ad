"""This module writes docs/configuration.md from the models of the configuration.

python -m launch.config_reference > docs/configuration.md
"""

import inspect
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pretrain.config.keys import is_section, sections_of, table_entry
from pretrain.config.run import DATA, RunConfig

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
    """It yields each section with a table of its keys, parents first; where it goes by its kind, one for each kind."""
    # Kinds of section that have a section of their own in common, such as `model.attention`, show it once.
    yield from dict.fromkeys(tables_of(RunConfig, ""))


def tables_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """It yields the tables of all sections below `model`."""
    for name, field in shown(model):
        key = f"{prefix}{name}"
        title = f"[[{key}]]" if table_entry(field) else f"[{key}]"
        for section in sections_of(field).values():
            which = kind_of_section(field, section)
            yield table(f"## `{title}`{which}", description(field, section), section)
            yield from tables_of(section, f"{key}[]." if table_entry(field) else f"{key}.")


def kind_of_section(field: FieldInfo, section: type[BaseModel]) -> str:
    """It says what one of several sections goes by: its own kind, or that of the tasks whose data it describes."""
    kinds = {of: kind for kind, of in sections_of(field).items()}
    if len(kinds) == 1:
        return ""
    if "kind" in dict(shown(section)):
        return f', `kind = "{kinds[section]}"`'
    tasks = " or ".join(f'`model.kind = "{task}"`' for task, of in DATA.items() if of is section)
    return f", {tasks}"


def description(field: FieldInfo, section: type[BaseModel]) -> str:
    """It returns what stands beside the field, or else the model's own text."""
    return (field.description or inspect.getdoc(section) or "").strip()


def table(title: str, text: str, section: type[BaseModel]) -> str:
    """It writes one section; sections within it have tables of their own."""
    rows = [row(name, field) for name, field in shown(section) if not is_section(field)]
    return "\n".join(
        [title, "", text, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def shown(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """It returns the keys of a model but those that are kept out of sight."""
    return [(name, field) for name, field in model.model_fields.items() if field.repr]


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
    if get_origin(annotation) is tuple:
        return f"array of {type_name(get_args(annotation)[0])}s"
    words = {int: "integer", float: "number", bool: "boolean"}
    choices = [part for part in get_args(annotation) if part is not type(None)]
    return " or ".join(map(type_name, choices)) or words.get(annotation, "string")


if __name__ == "__main__":
    print(reference(), end="")
