"""The keys of the configuration, read off its models."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted key, field) of every section and key below `model`, parents first.

    Entries of a list of tables have `[]` in their key, as in `data.sources[].path`. Keys that dumps leave out follow
    from others, and are none of the user's.
    """
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        key = f"{prefix}{name}"
        yield key, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from walk(field.annotation, f"{key}.")
        elif entry := table_entry(field):
            yield from walk(entry, f"{key}[].")


def table_entry(field: FieldInfo) -> type[BaseModel] | None:
    """The model of one entry where `field` is a list of tables."""
    arguments: tuple[Any, ...] = get_args(field.annotation)
    entry = arguments[0] if arguments else None
    return entry if isinstance(entry, type) and issubclass(entry, BaseModel) else None


def is_section(field: FieldInfo) -> bool:
    """Whether `field` holds keys of its own: a table or a list of tables."""
    annotation = field.annotation
    is_table = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return is_table or table_entry(field) is not None
