"""Encoded documents are written here as the train and validation splits of a text dataset.

S  targets in a sequence; a block holds S + 1 ids
V  vocabulary size
"""

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.shards.storage import data_errors
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.text.blocks import FIELDS, BlockCodec, BlockPacker, token_type
from data_pipeline.text.encoding import Ids
from data_pipeline.text.manifest import TextManifest, TokenizerEntry
from data_pipeline.text.tokenizer import TOKENIZER_FILE, Tokenizer

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Packing:
    """It says how ids become samples and shards."""

    sequence_length: int
    shard_samples: int


class SplitWriter:
    """It packs the documents of one split into `folder/SPLIT/`."""

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer, packing: Packing) -> None:
        self._folder = folder / split
        self._split = split
        self._tokenizer = tokenizer
        self._packing = packing
        dtype = token_type(tokenizer.vocabulary_size)
        self._packer = BlockPacker(packing.sequence_length, tokenizer.end_of_text, dtype)
        self._codec = BlockCodec(packing.sequence_length, dtype)
        self._documents = 0
        self._samples = 0
        self._ids = 0
        self.counts_V: NDArray[np.int64] = np.zeros(tokenizer.vocabulary_size, np.int64)
        """How often each id is a target."""
        with data_errors(self._folder):
            self._folder.mkdir()
        self._shards = ShardWriter(self._folder, "text", packing.shard_samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shards.__exit__(kind, error, trace)

    def add(self, document: Ids) -> None:
        """It appends a document."""
        self._documents += 1
        self._ids += len(document)
        for block_S1 in self._packer.add(document):
            self._shards.write(f"{self._split}-{self._samples:09d}", self._codec.encode(block_S1))
            self._samples += 1
            self.counts_V += np.bincount(block_S1[1:], minlength=len(self.counts_V))

    def finish(self, train_counts_V: NDArray[np.int64] | None = None) -> TextManifest:
        """It finishes the shards and writes the manifest; `train_counts_V` are for a validation split.

        Raises DataError when the documents do not fill a block.
        """
        if not self._samples:
            raise too_small(self._split, f"{self._ids:,}", self._documents, self._packing.sequence_length)
        manifest = TextManifest(
            split=self._split,
            documents=self._documents,
            samples=self._samples,
            fields=FIELDS,
            shards=self._shards.finish(),
            sequence_length=self._packing.sequence_length,
            tokens=self._samples * self._packing.sequence_length,
            dtype=token_type(self._tokenizer.vocabulary_size),
            tokenizer=tokenizer_entry(self._tokenizer),
            unigram_cross_entropy=unigram_cross_entropy(self.counts_V, train_counts_V),
        )
        path = self._folder / MANIFEST
        with data_errors(path):
            path.write_text(manifest.model_dump_json(indent=1) + "\n")
        return manifest


def too_small(split: Split, tokens: str, documents: int, sequence_length: int) -> DataError:
    """It returns the error for a split that does not fill a block."""
    return DataError(
        f"the {split} split has {tokens} tokens in {documents:,} documents, less than one block of "
        f"{sequence_length + 1}; give more text, a shorter --sequence-length, or another --validation-fraction "
        "(0: no validation split)"
    )


def tokenizer_entry(tokenizer: Tokenizer) -> TokenizerEntry:
    """It returns what a manifest says of the tokenizer, which lies one folder up."""
    return TokenizerEntry(
        file=TOKENIZER_FILE, sha256=tokenizer.digest, vocabulary_size=tokenizer.vocabulary_size
    )


def unigram_cross_entropy(
    counts_V: NDArray[np.int64], train_counts_V: NDArray[np.int64] | None
) -> float | None:
    """It returns the nats per target of a split under the train split's frequencies, one added to each count."""
    if train_counts_V is None:
        return None
    log_probabilities_V = np.log(train_counts_V + 1) - math.log(train_counts_V.sum() + len(train_counts_V))
    return float(-(counts_V @ log_probabilities_V) / counts_V.sum())
