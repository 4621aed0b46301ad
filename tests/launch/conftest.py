"""Fixtures for tests of scripts that run under schedulers."""

from collections.abc import Iterator

import pytest
from support.scripts import Place, make_place
from support.slurm import Slurm, slurm


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running
