"""docs/configuration.md is what the code says."""

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from launch.config_reference import reference
from pretrain.config.keys import is_section, sections_of, walk
from pretrain.config.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m launch.config_reference > docs/configuration.md"


def rows() -> list[str]:
    """The keys that the page has, those of several kinds of section as often as they stand there."""
    found, section = [], ""
    for line in reference().splitlines():
        if heading := re.match(r"## `(\[+)(.*?)\]+`", line):
            section = heading[2] + ("[]" if heading[1] == "[[" else "")
        elif key := re.match(r"\| `(.*?)` \|", line):
            found.append(f"{section}.{key[1]}")
    return found


def shared_keys(name: str, field: FieldInfo) -> set[str]:
    """The keys that several kinds of a section have of their own."""
    kinds = [of.model_fields for of in sections_of(field).values()]
    own = {
        key: found for kind in kinds for key, found in kind.items() if found.repr and not is_section(found)
    }
    return {f"{name}.{key}" for key in own if sum(key in kind for kind in kinds) > 1}


def test_every_key_has_a_row() -> None:
    keys = {key for key, field in walk(RunConfig) if not is_section(field)}
    assert set(rows()) == keys
    shared = {key for name, field in RunConfig.model_fields.items() for key in shared_keys(name, field)}
    assert {key for key in rows() if rows().count(key) > 1} == shared


def test_a_section_that_goes_by_its_kind_has_a_heading_for_each() -> None:
    assert '## `[optimizer]`, `kind = "adamw"`' in reference()
    assert '## `[optimizer]`, `kind = "sgd"`' in reference()
    assert '`kind` | `"text"`' not in reference(), "that of the data follows from the model's"
