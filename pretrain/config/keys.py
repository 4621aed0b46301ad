"""It reads the keys of the configuration off its models, and finds the key that a misspelled one was meant to be."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pretrain.section import OneOf

LEAST_SIMILARITY = 0.6
"""Twice the shared characters over all characters, as difflib's own default."""


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted key, field) of every section and key below `model`, parents first.

    Entries of a list of tables have `[]` in their key, as in `data.sources[].path`. Where a section goes by its kind,
    keys of all kinds come, each of them once; keys that are kept out of sight do not.
    """
    seen = set()
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if not field.repr:
            continue
        yield key, field
        below = f"{key}[]." if table_entry(field) else f"{key}."
        for section in sections_of(field).values():
            for inner, found in walk(section, below):
                if inner not in seen:
                    seen.add(inner)
                    yield inner, found


def of_other_kinds(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """It returns the keys that a section does not have, but others of its kinds do; `location` is one of pydantic's."""
    section, kind = str(location[0]), str(location[1]) if len(location) > 1 else ""
    kinds = sections_of(model.model_fields[section]) if section in model.model_fields else {}
    if not kind or kind not in kinds:
        return set()
    keys = {name: {key for key, _ in walk(of, f"{section}.")} for name, of in kinds.items()}
    return set().union(*keys.values()) - keys[kind]


def sections_of(field: FieldInfo) -> Mapping[str, type[BaseModel]]:
    """It returns the models of the keys in a field, by their kind, or by an empty string where there is but one."""
    for mark in field.metadata:
        if isinstance(mark, OneOf):
            return mark.sections
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return {"": field.annotation}
    entry = table_entry(field)
    return {"": entry} if entry else {}


def table_entry(field: FieldInfo) -> type[BaseModel] | None:
    """It returns the model of one entry where `field` is a list of tables, and else none."""
    arguments: tuple[Any, ...] = get_args(field.annotation)
    entry = arguments[0] if arguments else None
    return entry if isinstance(entry, type) and issubclass(entry, BaseModel) else None


def is_section(field: FieldInfo) -> bool:
    """It says whether `field` holds keys of its own: a table or a list of tables."""
    return bool(sections_of(field))


def without_kinds(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """It returns the place of a key as users write it: pydantic puts the kind of a section behind its name."""
    if len(location) < 2 or location[0] not in model.model_fields:
        return location
    kinds = sections_of(model.model_fields[str(location[0])])
    return (location[0], *location[2:]) if location[1] in kinds else location


def nearest(name: Any, candidates: Iterable[str], least: float = LEAST_SIMILARITY) -> list[str]:
    """It returns the candidates most similar to `name`: several when they tie, none when nothing is similar."""
    if not isinstance(name, str):
        return []
    similarity = {known: SequenceMatcher(None, name, known).ratio() for known in candidates}
    best = max(similarity.values(), default=0.0)
    return [known for known, ratio in similarity.items() if ratio == best >= least]
