"""Encoded pairs are written here as the train and validation splits of a translation dataset.

V  vocabulary size of the target
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.shards.storage import data_errors
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.text.blocks import TokenType, token_type
from data_pipeline.text.manifest import TokenizerEntry
from data_pipeline.text.splits import Split, unigram_cross_entropy
from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.sentences import FIELDS, Ids, SentenceCodec


@dataclass(frozen=True)
class Tokenizers:
    """They are those of source and target, with the names of their files."""

    source: Tokenizer
    target: Tokenizer
    files: tuple[str, str]

    @property
    def both(self) -> tuple[Tokenizer, Tokenizer]:
        """They are in the order of the sides."""
        return self.source, self.target

    @property
    def dtype(self) -> TokenType:
        """It holds the ids of both."""
        return token_type(max(tokenizer.vocabulary_size for tokenizer in self.both))

    def entries(self) -> tuple[TokenizerEntry, TokenizerEntry]:
        """They are what a manifest says of them."""
        source, target = (
            TokenizerEntry(file=file, sha256=one.digest, vocabulary_size=one.vocabulary_size)
            for file, one in zip(self.files, self.both, strict=True)
        )
        return source, target


class PairWriter:
    """It writes the pairs of one split into `folder/SPLIT/`."""

    def __init__(self, folder: Path, split: Split, tokenizers: Tokenizers, shard_samples: int) -> None:
        self._folder = folder / split
        self._split = split
        self._tokenizers = tokenizers
        self._codec = SentenceCodec(tokenizers.dtype)
        self._samples = 0
        self._tokens = np.zeros(2, np.int64)
        self._longest = np.zeros(2, np.int64)
        self.counts_V: NDArray[np.int64] = np.zeros(tokenizers.target.vocabulary_size, np.int64)
        """How often each id is a target."""
        with data_errors(self._folder):
            self._folder.mkdir()
        self._shards = ShardWriter(self._folder, "translation", shard_samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shards.__exit__(kind, error, trace)

    def add(self, source: Ids, target: Ids) -> None:
        """It appends a pair."""
        self._shards.write(f"{self._split}-{self._samples:09d}", self._codec.encode(source, target))
        self._samples += 1
        lengths = np.array([len(source), len(target)])
        self._tokens += lengths
        self._longest = np.maximum(self._longest, lengths)
        np.add.at(self.counts_V, target, 1)

    @property
    def samples(self) -> int:
        """It counts the pairs so far."""
        return self._samples

    def finish(self, train_counts_V: NDArray[np.int64] | None = None) -> TranslationManifest:
        """It finishes the shards and writes the manifest; `train_counts_V` are for a validation split."""
        source, target = self._tokenizers.entries()
        manifest = TranslationManifest(
            split=self._split,
            documents=self._samples,
            samples=self._samples,
            fields=FIELDS,
            shards=self._shards.finish(),
            source_tokens=int(self._tokens[0]),
            target_tokens=int(self._tokens[1]),
            longest_source=int(self._longest[0]),
            longest_target=int(self._longest[1]),
            dtype=self._tokenizers.dtype,
            source_tokenizer=source,
            target_tokenizer=target,
            unigram_cross_entropy=unigram_cross_entropy(self.counts_V, train_counts_V),
        )
        path = self._folder / MANIFEST
        with data_errors(path):
            path.write_text(manifest.model_dump_json(indent=1) + "\n")
        return manifest
