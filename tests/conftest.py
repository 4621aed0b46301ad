"""Fixtures that several parts of the tests share."""

from pathlib import Path

import pytest
from hypothesis import settings
from support.corpus import write_corpus

pytest_plugins = ["support.skips"]

settings.register_profile("surefoot", deadline=None)  # what a busy machine takes says nothing about the code
settings.load_profile("surefoot")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of a few dozen short sequences with a vocabulary of 300."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
