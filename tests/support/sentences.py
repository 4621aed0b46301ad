"""Prepared pairs of sentences, English and German, small enough to learn something from in seconds."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.training import Layout
from support.translation import translation_config

from data_pipeline.__main__ import main
from pretrain.config.run import RunConfig

VOCABULARY = 300

WORDS = {
    "dog": "Hund",
    "cat": "Katze",
    "runs": "rennt",
    "sleeps": "schläft",
    "red": "rot",
    "old": "alt",
    "house": "Haus",
    "snow": "Schnee",
}


def sentences(count: int) -> Iterator[tuple[str, str]]:
    """It yields pairs of one to six words, no two alike; the German ones end in a full stop."""
    draw, seen = random.Random(3), set()
    while len(seen) < count:
        words = tuple(draw.choices(list(WORDS), k=draw.randint(1, 6)))
        if words not in seen:
            seen.add(words)
            yield " ".join(words), f"{' '.join(WORDS[word] for word in words)}."


def write_sentences(folder: Path, train: int = 300, validation: int = 11) -> Path:
    """It prepares pairs with a tokenizer for either side; returns where the data lies."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(sentences(train + validation))
    parts = {"train": pairs[:train], "validation": pairs[train:]}
    for name, part in parts.items():
        for side, text in zip(("en", "de"), zip(*part, strict=True), strict=True):
            (folder / f"{name}.{side}").write_text("".join(f"{line}\n" for line in text))
    files = {
        "--source": "train.en",
        "--target": "train.de",
        "--validation-source": "validation.en",
        "--validation-target": "validation.de",
    }
    words = [str(word) for option, name in files.items() for word in (option, folder / name)]
    options = [
        "--out",
        str(folder / "data"),
        "--vocabulary-size",
        str(VOCABULARY),
        "--separate",
        "--workers",
        "1",
    ]
    assert main(["translation", *words, *options]) == 0
    return folder / "data"


def sentences_run(layout: Layout, folder: Path, corpus: Path, **sections: dict[str, Any]) -> RunConfig:
    """It configures a run of 8 steps in `folder/test`, which validates at every fourth."""
    model = {
        "embeddings": "separate",
        "source_vocabulary_size": VOCABULARY,
        "target_vocabulary_size": VOCABULARY,
    }
    base = translation_config(layout, model).model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": 8},
        "data": {
            "sources": [{"path": str(corpus)}],
            "prefetch_steps": 0,
            "max_source_length": 32,
            "max_target_length": 24,
        },
        "checkpoint": {"every_steps": 100},
        "evaluation": {"every_steps": 4, "examples": 7},
        "journal": {"console": "none"},
        "watchdog": {"enabled": False},
    }
    for name in {**changes, **sections}:
        base[name] = {**base[name], **changes.get(name, {}), **sections.get(name, {})}
    return RunConfig.model_validate(base)
