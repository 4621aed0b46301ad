"""It turns what pydantic finds into problems in the user's terms: key, value, rule, a value that would work."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from data_pipeline.config import SECRET_IN_URL
from data_pipeline.shown import masked
from pretrain.config.foreign_names import EXAMPLES, FOREIGN_NAMES
from pretrain.config.keys import is_section, nearest, of_other_kinds, sections_of, walk, without_kinds
from pretrain.errors import Problem
from pretrain.section import kind_of
from pretrain.tasks.kinds import KINDS

RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string in quotes",
    "path_type": "must be a path in quotes",
    "tuple_type": "must be a list of tables",
    "model_type": "must be a table of keys",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "too_short": "must not be empty",
    "string_pattern_mismatch": "must be of letters, digits, '.', '_', '-', the first a letter or digit",
}
"""Kind of a pydantic error to our words; braces are filled from the error's context."""


CLOSE = 0.75
"""Least similarity to a name of another framework: there are many of those, and most are short."""


def explain(model: type[BaseModel], error: ValidationError) -> list[Problem]:
    """It returns all problems behind a ValidationError of `model`, unknown keys first.

    A section or key that is missing because its name is misspelled is reported once, as the misspelling.
    """
    found = error.errors(include_url=False)
    found += [hidden for detail in found for hidden in hidden_by_kind(model, detail)]
    details = [located(model, detail) for detail in found]
    unknown = [
        (key, value, suggest(model, key, last=of_other_kinds(model, raw["loc"])))
        for raw, detail in zip(found, details, strict=True)
        if detail["type"] == "extra_forbidden"
        for key, value in unknown_leaves(model, dotted(detail["loc"]), detail["input"])
    ]
    meant = {key for *_, suggestions in unknown for key in suggestions}
    return [
        *(
            Problem(key, "unknown key", belongs_to(model, key) or did_you_mean(suggestions), toml(value))
            for key, value, suggestions in unknown
        ),
        *(invalid_value(model, detail) for detail in details if not follows(detail, details, meant)),
    ]


def located(model: type[BaseModel], detail: ErrorDetails) -> ErrorDetails:
    """It returns the same error at the key as users write it."""
    return {**detail, "loc": without_kinds(model, detail["loc"])}


def hidden_by_kind(model: type[BaseModel], detail: ErrorDetails) -> Iterator[ErrorDetails]:
    """It yields what else is wrong in a section whose `kind` is misspelled."""
    if detail["type"] != "union_tag_invalid":
        return
    kinds = sections_of(model.model_fields[str(detail["loc"][0])])
    for kind in nearest(detail["input"]["kind"], kinds)[:1]:
        try:
            kinds[kind].model_validate_json(json.dumps({**detail["input"], "kind": kind}), strict=True)
        except ValidationError as error:
            for hidden in error.errors(include_url=False):
                yield {**hidden, "loc": (*detail["loc"], kind, *hidden["loc"])}


def follows(detail: ErrorDetails, details: list[ErrorDetails], meant: set[str]) -> bool:
    """It says whether an error is told already: an unknown key, what it leaves missing, a list of bad entries."""
    location = detail["loc"]
    match detail["type"]:
        case "extra_forbidden":
            return True
        case "missing":
            return dotted(location) in meant
        case "too_short":
            return any(other["loc"][: len(location)] == location for other in details if other is not detail)
    return False


def unknown_leaves(model: type[BaseModel], key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """It yields the keys to explain for an unknown `key`: itself, or what a section of another framework holds."""
    if isinstance(value, dict) and value and not suggest(model, key):
        for name, below in value.items():
            yield from unknown_leaves(model, f"{key}.{name}", below)
    else:
        yield key, value


def suggest(model: type[BaseModel], key: str, last: Collection[str] = ()) -> list[str]:
    """It returns the known keys that an unknown dotted key may mean: a foreign name, a key elsewhere, a misspelling.

    Keys in `last` are meant only where no others can be.
    """
    known = [name for name, _ in walk(model)]
    return meant_of([name for name in known if name not in last], key) or meant_of(known, key)


def meant_of(known: list[str], key: str) -> list[str]:
    """It returns those of the known keys that an unknown one may mean."""
    section, _, name = re.sub(r"\[\d+\]", "[]", key).rpartition(".")
    siblings = [known_name(full) for full in known if full.rpartition(".")[0] == section]
    foreign = FOREIGN_NAMES.get(name.lower().replace("-", "_"))
    elsewhere = [full for full in known if known_name(full) == name]
    similar = [f"{key.rpartition('.')[0]}.{match}".lstrip(".") for match in nearest(name, siblings)]
    found = list(dict.fromkeys([*([foreign] if foreign in known else []), *elsewhere, *similar]))
    if found:
        return found
    misspelled = nearest(name.lower().replace("-", "_"), FOREIGN_NAMES, least=CLOSE)
    return list(dict.fromkeys(meant for match in misspelled if (meant := FOREIGN_NAMES[match]) in known))


def invalid_value(model: type[BaseModel], detail: ErrorDetails) -> Problem:
    """It returns the problem behind one error that is not an unknown key."""
    key = dotted(detail["loc"])
    if detail["type"] == "union_tag_invalid":
        kinds, given = list(sections_of(model.model_fields[key])), detail["input"]["kind"]
        meant = (nearest(given, kinds) or kinds)[0]
        rule = f"must be {', '.join(map(toml, kinds))}"
        return Problem(f"{key}.kind", rule, f"for example kind = {toml(meant)}", toml(given))
    example = working_value(model, key)
    if detail["type"] == "missing":
        return Problem(key, "required", f"for example {example}" if example else "")
    rule = RULES.get(detail["type"], detail["msg"]).format(**detail.get("ctx", {}))
    value = "" if detail["type"] == SECRET_IN_URL else toml(detail["input"])
    return Problem(key, rule, f"for example {example}" if example else "", value)


def working_value(model: type[BaseModel], key: str) -> str:
    """It returns a line of TOML that sets `key` to a value that would work, or a section's heading; else nothing.

    A task gives its own examples with the field: `Field(examples=[8])`.
    """
    name = re.sub(r"\[\d+\]", "[]", key)
    field = dict(walk(model)).get(name)
    if field is None:
        return ""
    if example := EXAMPLES.get(name):
        return f"{known_name(name)} = {example}"
    if is_section(field):
        return f"[{name}]"
    value = field.examples[0] if field.examples else field.default
    return "" if value is PydanticUndefined else f"{known_name(name)} = {toml(value)}"


def belongs_to(model: type[BaseModel], key: str) -> str:
    """It tells the kinds of section that do have the key, where that of the user does not."""
    name = re.sub(r"\[\d+\]", "[]", key)
    section = name.partition(".")[0]
    field = model.model_fields.get(section)
    if field is None:
        return ""
    kinds = [
        kind for kind, of in sections_of(field).items() if kind and name in dict(walk(of, f"{section}."))
    ]
    if section == "data":  # what users choose is the task
        tasks = [kind_of(task) for task in KINDS if kind_of(task.data_section) in kinds]
        return f"it is a key of model.kind = {' or '.join(map(toml, tasks))}" if tasks else ""
    return f"it is a key of kind = {' or '.join(map(toml, kinds))}" if kinds else ""


def did_you_mean(suggestions: list[str]) -> str:
    return f"did you mean {' or '.join(suggestions)}?" if suggestions else ""


def known_name(key: str) -> str:
    return key.rpartition(".")[2]


def dotted(location: tuple[int | str, ...]) -> str:
    """It returns the user's key: ("data", "sources", 0, "path") -> data.sources[0].path."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def toml(value: Any) -> str:
    """It returns the value about as it stands in TOML, shortened; for a table it is empty."""
    if isinstance(value, dict):
        return ""
    text = masked(json.dumps(value, default=str))
    return text if len(text) <= 60 else f"{text[:57]}..."
