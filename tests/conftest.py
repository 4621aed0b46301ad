"""Fixtures that several parts of the tests share."""

import random
from pathlib import Path

import pytest

from data_pipeline.prepare_text import TextSettings, prepare_text

TEXT = "the run keeps its feet while loss falls and every rank agrees on what it saw before it steps"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of a few dozen short sequences with a vocabulary of 300."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def write_corpus(folder: Path) -> Path:
    """Write the corpus into a folder and prepare it; where the prepared data lies."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, words = random.Random(0), TEXT.split()
    for document in range(20):
        text = " ".join(draw.choice(words) for _ in range(30))
        (folder / f"{document}.txt").write_text(f"{text}.\n")
    settings = TextSettings(
        sources=(str(folder),),
        out=folder / "data",
        vocabulary_size=300,
        sequence_length=32,
        validation_fraction=0.2,
        shard_samples=100,
    )
    prepare_text(settings)
    return folder / "data"
