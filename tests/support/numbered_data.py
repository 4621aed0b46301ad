"""The samples of this prepared data can be told apart: sample number i consists of the id i."""

import hashlib
from pathlib import Path

import numpy as np

from data_pipeline.shards.writer import ShardWriter
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.blocks import FIELDS, BlockCodec
from data_pipeline.text.config import TextConfig
from data_pipeline.text.manifest import TextManifest, TokenizerEntry

LENGTH = 4
VOCABULARY = 60_000


def write_split(
    folder: Path,
    samples: int,
    *,
    first: int = 1,
    split: str = "train",
    shard_samples: int = 7,
    length: int = LENGTH,
    tokenizer: bytes = b"tokenizer",
) -> Path:
    """It writes samples `first`, `first + 1`, ... to `folder/SPLIT`; returns `folder`."""
    (folder / split).mkdir(parents=True)
    codec = BlockCodec(length, "uint16")
    with ShardWriter(folder / split, "text", shard_samples) as writer:
        for number in range(first, first + samples):
            block = np.full(length + 1, number, np.uint16)
            writer.write(f"{split}-{number:06d}", codec.encode(block))
        shards = writer.finish()
    manifest = TextManifest(
        split=split,
        documents=samples,
        samples=samples,
        fields=FIELDS,
        shards=shards,
        sequence_length=length,
        tokens=samples * length,
        dtype="uint16",
        tokenizer=TokenizerEntry(
            file="tokenizer.model",
            sha256=hashlib.sha256(tokenizer).hexdigest(),
            vocabulary_size=VOCABULARY,
        ),
    )
    (folder / split / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def config(*paths: object, weights: tuple[float, ...] = (), **settings: object) -> TextConfig:
    """It returns a configuration that reads `paths`, with a global batch of 12."""
    weights = weights or (1.0,) * len(paths)
    sources = [{"path": str(path), "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    defaults = {"sequence_length": LENGTH, "micro_batch_size": 2, "global_batch_size": 12}
    return TextConfig.model_validate({"sources": sources, **defaults, **settings})


def numbers(step: list[TokenBatch]) -> list[int]:
    """It returns which samples a step of micro-batches holds; 0 for a masked one."""
    return [int(row[0]) for batch in step for row in batch.tokens_BS]
