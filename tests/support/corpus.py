"""Tests read a corpus in miniature."""

import random
from pathlib import Path

from data_pipeline.text.prepare import TextSettings, prepare_text

TEXT = "the run keeps its feet while loss falls and every rank agrees on what it saw before it steps"


def write_corpus(folder: Path, documents: int = 20) -> Path:
    """It writes the corpus into a folder and prepares it; returns where the prepared data lies."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    draw, words = random.Random(0), TEXT.split()
    for document in range(documents):
        text = " ".join(draw.choice(words) for _ in range(30))
        (raw / f"{document}.txt").write_text(f"{text}.\n")
    settings = TextSettings(
        sources=(str(raw),),
        out=folder / "data",
        vocabulary_size=300,
        sequence_length=32,
        validation_fraction=0.2,
        shard_samples=100,
    )
    prepare_text(settings)
    return folder / "data"
