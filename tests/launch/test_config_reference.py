"""docs/configuration.md is what the code says."""

from pathlib import Path

from launch.config_reference import reference
from pretrain.config.keys import is_section, walk
from pretrain.config.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m launch.config_reference > docs/configuration.md"


def test_every_key_has_a_row() -> None:
    keys = [key for key, field in walk(RunConfig) if not is_section(field)]
    assert reference().count("\n| `") == len(keys)
