"""Fixtures that several parts of the tests share."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings
from support.corpus import write_corpus

pytest_plugins = ["support.skips"]

# `nohup`, and a shell without job control that starts something in the background, have it ignore these; so would
# all that tests start, and then send them to.
signal.signal(signal.SIGINT, signal.default_int_handler)
for ignorable in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(ignorable, signal.SIG_DFL)

settings.register_profile("surefoot", deadline=None)  # what a busy machine takes says nothing about the code
settings.load_profile("surefoot")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of a few dozen short sequences with a vocabulary of 300."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
