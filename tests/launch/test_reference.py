"""docs/configuration.md is what the code says."""

from pathlib import Path

from launch.reference import reference
from pretrain.config import RunConfig
from pretrain.schema import is_section, walk

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m launch.reference > docs/configuration.md"


def test_every_key_has_a_row() -> None:
    keys = [key for key, field in walk(RunConfig) if not is_section(field)]
    assert reference().count("\n| `") == len(keys)
