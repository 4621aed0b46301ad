"""The pairs of this prepared data can be told apart: every id of pair number i is i + FIRST_ID, but the end of text."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from support.training import Layout
from support.translation import translation_config

from data_pipeline.shards.writer import ShardWriter
from data_pipeline.text.manifest import TokenizerEntry
from data_pipeline.translation.batch import PairBatch
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.sentences import FIELDS, SentenceCodec
from pretrain.config.run import RunConfig

END, FIRST_ID, VOCABULARY = 1, 10, 60_000
RUN_VOCABULARY = 128
"""Of data that a run reads."""
LONGEST = 40


def lengths_of(number: int) -> tuple[int, int]:
    """It returns the tokens of both sides, the end included: of all lengths, and alike."""
    source = 2 + number * 7919 % (LONGEST - 8)
    return source, source + number * 104729 % 7


def write_pairs(
    folder: Path,
    samples: int,
    *,
    first: int = 0,
    split: str = "train",
    tokenizer: bytes = b"tokenizer",
    vocabulary: int = VOCABULARY,
) -> Path:
    """It writes pairs `first`, `first + 1`, ... to `folder/SPLIT`, in shards of 50; returns `folder`."""
    (folder / split).mkdir(parents=True)
    codec, numbers = SentenceCodec("uint16"), range(first, first + samples)
    with ShardWriter(folder / split, "translation", 50) as writer:
        for number in numbers:
            sides = [np.array([number + FIRST_ID] * (size - 1) + [END]) for size in lengths_of(number)]
            writer.write(f"{split}-{number:06d}", codec.encode(*sides))
        shards = writer.finish()
    sizes = np.array([lengths_of(number) for number in numbers])
    digest = hashlib.sha256(tokenizer).hexdigest()
    entry = TokenizerEntry(file="tokenizer.model", sha256=digest, vocabulary_size=vocabulary)
    manifest = TranslationManifest(
        split=split,
        documents=samples,
        samples=samples,
        fields=FIELDS,
        shards=shards,
        source_tokens=int(sizes[:, 0].sum()),
        target_tokens=int(sizes[:, 1].sum()),
        longest_source=int(sizes[:, 0].max()),
        longest_target=int(sizes[:, 1].max()),
        dtype="uint16",
        source_tokenizer=entry,
        target_tokenizer=entry,
    )
    (folder / split / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def pairs_config(*paths: object, weights: tuple[float, ...] = (), **settings: object) -> TranslationConfig:
    """It returns a configuration that reads `paths`, with a global batch of 24."""
    weights = weights or (1.0,) * len(paths)
    sources = [{"path": str(path), "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    defaults = {
        "max_source_length": LONGEST,
        "max_target_length": LONGEST,
        "micro_batch_size": 4,
        "global_batch_size": 24,
        "bucket_size": 4,
        "prefetch_steps": 0,
    }
    return TranslationConfig.model_validate({"sources": sources, **defaults, **settings})


def pairs_run(layout: Layout, folder: Path, pairs: Path, **sections: dict[str, Any]) -> RunConfig:
    """It configures a run of 8 steps on the pairs in `pairs`, at most 100 of them, in `folder/test`; what follows from
    the order of additions alone may differ between layouts, as there is no dropout."""
    model = {"source_vocabulary_size": RUN_VOCABULARY, "target_vocabulary_size": RUN_VOCABULARY}
    base = translation_config(layout, model).model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": 8},
        "data": {
            "sources": [{"path": str(pairs)}],
            "max_source_length": LONGEST,
            "max_target_length": LONGEST,
            "bucket_size": 2,
        },
        "checkpoint": {"every_steps": 100, "keep_last": 10},
        "evaluation": {"every_steps": 4, "samples": 12},
        "journal": {"console": "none", "tensorboard": False},
    }
    for name in {**changes, **sections}:
        base[name] = {**base[name], **changes.get(name, {}), **sections.get(name, {})}
    return RunConfig.model_validate(base)


def pair_numbers(step: list[PairBatch]) -> list[int]:
    """It returns which pairs a step of micro-batches holds; -1 for a masked one."""
    return [max(int(row[0]) - FIRST_ID, -1) for batch in step for row in batch.source_BS]
