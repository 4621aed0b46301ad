"""Raw pairs become a prepared dataset: tokenizers, train and validation splits, complete or not at all."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.preparing.progress import progress
from data_pipeline.preparing.record import make_once, make_record
from data_pipeline.preparing.source_files import check_apart
from data_pipeline.shown import shown
from data_pipeline.text.encoding import CHUNK_CHARACTERS, Chunk, encode_chunks
from data_pipeline.text.prepare import TRAINING_BYTES, fraction
from data_pipeline.text.splits import Split
from data_pipeline.text.tokenizer import TOKENIZER_FILE, Tokenizer, train_tokenizer
from data_pipeline.translation.corpus import Pair, ParallelCorpus, RawFiles
from data_pipeline.translation.filters import Filter, Limits
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.sentences import PADDING, encode_pairs
from data_pipeline.translation.splits import PairWriter, Tokenizers

SEPARATE_FILES = ("source.model", "target.model")
"""What tokenizers of two vocabularies are called beside prepared data."""


@dataclass(frozen=True)
class TranslationSettings:
    """It says what to prepare, and how."""

    train: RawFiles
    validation: RawFiles
    out: Path
    fields: tuple[str, str]
    """Of JSON lines: source and target."""
    vocabulary_size: int
    tokenizers: tuple[Path, ...]
    """One for both sides, or one for each; none: they are trained."""
    separate: bool
    """Train a tokenizer for each side."""
    validation_fraction: float
    """Share of the pairs that is held out, where there are no files for validation."""
    limits: Limits
    workers: int
    shard_samples: int
    seed: int
    overwrite: bool

    @property
    def splits(self) -> tuple[Split, ...]:
        """They are those that are made."""
        return ("train", "validation") if self.validation or self.validation_fraction else ("train",)


@dataclass(frozen=True)
class Prepared:
    """It tells what was written, with the manifest of train first, and what was left out."""

    manifests: tuple[TranslationManifest, ...]
    summary: Mapping[str, Any]
    """What was read, and by split and reason what was left out."""


@dataclass(frozen=True)
class PairChunk(Chunk):
    """It holds pairs, source and target in turns."""

    splits: tuple[Split, ...] = ()


def prepare_translation(settings: TranslationSettings) -> Prepared | None:
    """It makes `settings.out`, and returns None when it is there already, made with these settings from these files.

    Raises DataError, and TargetExists when `out` holds something else.
    """
    work = _Work(settings)
    for corpus in work.corpora:
        check_apart(settings.out, corpus.found)
    files = [file for corpus in work.corpora for file in corpus.files]
    return make_once(
        settings.out,
        make_record("translation", files, work.deciding()),
        work.make,
        overwrite=settings.overwrite,
        summary=lambda prepared: prepared.summary,
    )


class _Work:
    """It has what all passes over the raw pairs need."""

    def __init__(self, settings: TranslationSettings) -> None:
        self._settings = settings
        self.corpora = [ParallelCorpus(raw, settings.fields) for raw in (settings.train, settings.validation)]
        self._given = [_given_tokenizer(path) for path in settings.tokenizers]
        self._filters: dict[Split, Filter] = {}
        """Of the pass that is under way, or was the last."""

    def deciding(self) -> dict[str, Any]:
        """It returns the settings that decide the output."""
        settings = self._settings
        return {
            "tokenizers": [tokenizer.digest for tokenizer in self._given],
            "vocabulary_size": None if self._given else settings.vocabulary_size,
            "separate": settings.separate,
            "validation_fraction": settings.validation_fraction,
            "validation_files": len(self.corpora[1].files),
            "fields": list(settings.fields),
            "limits": asdict(settings.limits),
            "shard_samples": settings.shard_samples,
            "seed": settings.seed,
        }

    def make(self, folder: Path) -> Prepared:
        """It fills an empty folder."""
        counts = self._survey()
        tokenizers = self._tokenizers()
        for file, tokenizer in zip(tokenizers.files, tokenizers.both, strict=True):
            (folder / file).write_bytes(tokenizer.model)
        manifests = self._write_splits(folder, tokenizers)
        left_out = {split: dict(one.left_out) for split, one in self._filters.items()}
        return Prepared(manifests, {**counts, "left_out": left_out})

    def _survey(self) -> dict[str, int]:
        """It reads everything and counts it. Raises DataError for a split that has no pair, whatever the tokenizer."""
        kept = Counter(split for split, _ in self._pairs("looking through"))
        left_out = sum(sum(one.left_out.values()) for one in self._filters.values())
        for split in self._settings.splits:
            self._check_not_empty(split, kept[split])
        return {
            "files": sum(len(corpus.files) for corpus in self.corpora),
            "bytes": sum(corpus.bytes for corpus in self.corpora),
            "pairs": kept.total() + left_out,
        }

    def _pairs(self, title: str) -> Iterator[tuple[Split, Pair]]:
        """It reads all raw pairs once, and yields those whose text is kept, each with its split."""
        self._filters = {split: Filter(self._settings.limits) for split in self._settings.splits}
        with progress(title, sum(corpus.bytes for corpus in self.corpora)) as advance:
            for corpus, is_validation in zip(self.corpora, (False, True), strict=True):
                for pair in corpus.pairs():
                    advance(pair.consumed)
                    split: Split = "validation" if is_validation or self._is_held_out(pair) else "train"
                    if self._filters[split].keeps_text(pair.source, pair.target, pair.count):
                        yield split, pair

    def _is_held_out(self, pair: Pair) -> bool:
        """It decides by the source, so that all its translations stay together."""
        share = 0.0 if self._settings.validation else self._settings.validation_fraction
        return fraction(f"validation/{self._settings.seed}", pair.source) < share

    def _tokenizers(self) -> Tokenizers:
        """It takes or trains them, on the train split alone."""
        if self._given:
            return _named(self._given)
        share = TRAINING_BYTES / max(self.corpora[0].bytes, 1)
        texts = [
            (pair.source, pair.target)
            for split, pair in self._pairs("reading for the tokenizer")
            if split == "train" and fraction("tokenizer", pair.source) < share
        ]
        sides = list(zip(*texts, strict=True)) if self._settings.separate else [chain.from_iterable(texts)]
        return _named([train_tokenizer(side, self._settings.vocabulary_size) for side in sides])

    def _write_splits(self, folder: Path, tokenizers: Tokenizers) -> tuple[TranslationManifest, ...]:
        settings = self._settings
        encode = partial(encode_pairs, tokenizers.both, tokenizers.dtype)
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(PairWriter(folder, split, tokenizers, settings.shard_samples))
                for split in settings.splits
            }
            for chunk, ids in encode_chunks(encode, self._chunks(), settings.workers):
                for split, source, target in zip(chunk.splits, ids[::2], ids[1::2], strict=True):
                    if self._filters[split].keeps_lengths(len(source), len(target)):
                        writers[split].add(source, target)
            for split, writer in writers.items():
                self._check_not_empty(split, writer.samples)
            train, *validation = writers.values()
            return (train.finish(), *(writer.finish(train.counts_V) for writer in validation))

    def _chunks(self) -> Iterator[PairChunk]:
        """It yields pairs in portions that are worth a trip to another process."""
        texts: list[str] = []
        splits: list[Split] = []
        characters = 0
        for split, pair in self._pairs("tokenizing"):
            texts += (pair.source, pair.target)
            splits.append(split)
            characters += len(pair.source) + len(pair.target)
            if characters >= CHUNK_CHARACTERS:
                yield PairChunk(tuple(texts), splits=tuple(splits))
                texts, splits, characters = [], [], 0
        if texts:
            yield PairChunk(tuple(texts), splits=tuple(splits))

    def _check_not_empty(self, split: Split, pairs: int) -> None:
        if pairs:
            return
        reasons = ", ".join(
            f"{count:,} left out: {why}" for why, count in self._filters[split].left_out.items()
        )
        remedy = "give more text or looser limits"
        if not self._settings.validation:
            remedy += ", or another --validation-fraction (0: no validation split)"
        raise DataError(f"the {split} split has no pair{f' ({reasons})' if reasons else ''}; {remedy}")


def _given_tokenizer(path: Path) -> Tokenizer:
    """It reads a tokenizer. Raises DataError for one that has a use for the id of padding."""
    tokenizer = Tokenizer.load(path)
    if tokenizer.end_of_text == PADDING or tokenizer.pieces()[PADDING].kind != "control":
        raise DataError(
            f"{shown(path)}: id {PADDING} must be that of the unknown piece, as it stands for padding; "
            "`surefoot prepare` makes such a tokenizer"
        )
    return tokenizer


def _named(tokenizers: Sequence[Tokenizer]) -> Tokenizers:
    """It gives files to a tokenizer for both sides, or to one for each."""
    if len(tokenizers) == 1:
        return Tokenizers(tokenizers[0], tokenizers[0], (TOKENIZER_FILE, TOKENIZER_FILE))
    source, target = tokenizers
    return Tokenizers(source, target, SEPARATE_FILES)
