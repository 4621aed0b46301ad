"""Raw text becomes a prepared dataset: tokenizer, train and validation splits, complete or not at all."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import DataError
from data_pipeline.preparing.progress import progress
from data_pipeline.preparing.record import make_once, make_record
from data_pipeline.preparing.source_files import LeftOut, check_apart
from data_pipeline.shown import shown
from data_pipeline.text.corpus import PIECES, SHORTEST_PIECE, Corpus
from data_pipeline.text.encoding import CHUNK_CHARACTERS, Chunk, encode_chunks, encode_texts
from data_pipeline.text.manifest import TextManifest
from data_pipeline.text.splits import Packing, Split, SplitWriter, too_small
from data_pipeline.text.tokenizer import TOKENIZER_FILE, Tokenizer, train_tokenizer

TRAINING_BYTES = 32 << 20
"""Text that the tokenizer is trained on, about; of a larger corpus an evenly spread part of the documents."""


@dataclass(frozen=True)
class TextSettings:
    """It says what to prepare, and how."""

    sources: tuple[str, ...]
    out: Path
    vocabulary_size: int
    sequence_length: int
    validation_fraction: float
    tokenizer: Path | None = None
    field: str = "text"
    workers: int = 1
    shard_samples: int = 65536
    seed: int = 0
    overwrite: bool = False
    format: Literal["auto", "text", "jsonl"] = "auto"


@dataclass(frozen=True)
class Prepared:
    """It tells what was written, with the manifest of train first, and what was left out."""

    manifests: tuple[TextManifest, ...]
    left_out: tuple[LeftOut, ...]
    summary: Mapping[str, Any]
    """What was read, cut, left out and counted twice."""


def prepare_text(settings: TextSettings) -> Prepared | None:
    """It makes `settings.out`, and returns None when it is there already, made with these settings from these files.

    Raises DataError, and TargetExists when `out` holds something else.
    """
    corpus = Corpus(settings.sources, settings.field, settings.format)
    check_apart(settings.out, corpus.found)
    given = Tokenizer.load(settings.tokenizer) if settings.tokenizer else None

    def make(folder: Path) -> Prepared:
        _survey(settings, corpus)
        tokenizer = given or _trained_tokenizer(settings, corpus)
        (folder / TOKENIZER_FILE).write_bytes(tokenizer.model)
        manifests = _write_splits(settings, corpus, tokenizer, folder)
        return Prepared(manifests, corpus.left_out, corpus.summary)

    record = make_record("text", corpus.files, _deciding(settings, given))
    return make_once(
        settings.out,
        record,
        make,
        overwrite=settings.overwrite,
        summary=lambda prepared: prepared.summary,
    )


def _deciding(settings: TextSettings, given: Tokenizer | None) -> dict[str, Any]:
    """It returns the settings that decide the output."""
    return {
        "tokenizer": given.digest if given else None,
        "vocabulary_size": None if given else settings.vocabulary_size,
        "sequence_length": settings.sequence_length,
        "validation_fraction": settings.validation_fraction,
        "field": settings.field,
        "shard_samples": settings.shard_samples,
        "seed": settings.seed,
        # Not where it is the default, so that what was made before there was a choice is known again.
        **({} if settings.format == "auto" else {"reading": settings.format}),
    }


def _survey(settings: TextSettings, corpus: Corpus) -> None:
    """It has the corpus decide what it reads, and sees to it that every split can have some.

    Raises DataError when one cannot, whatever the tokenizer.
    """
    counts = _counts(settings, corpus)
    if _small_split(settings, counts) and counts["documents"]:
        corpus.longest = max((counts["train"] + counts["validation"]) // PIECES, SHORTEST_PIECE)
        counts = _counts(settings, corpus)
    if not counts["documents"]:
        raise DataError(
            f"there is no text in {', '.join(map(shown, settings.sources))}{_why(corpus.left_out)}"
        )
    if split := _small_split(settings, counts):
        tokens, documents = counts[split], counts[f"{split} documents"]
        most = f"at most {tokens:,}" if tokens else "0"
        raise too_small(split, most, documents, settings.sequence_length)


def _counts(settings: TextSettings, corpus: Corpus) -> Counter[str]:
    """It surveys the corpus, and returns the bytes and documents of each split."""

    def measure(text: str) -> dict[str, int]:
        split = "validation" if _is_held_out(settings, text) else "train"
        return {split: len(text.encode()), f"{split} documents": 1}

    with progress("looking through", corpus.bytes) as advance:
        return corpus.survey(measure, advance)


def _small_split(settings: TextSettings, counts: Counter[str]) -> Split | None:
    """It returns a split that cannot fill a block: its documents have at most as many tokens as bytes."""
    for split in _splits(settings):
        if counts[split] + counts[f"{split} documents"] < settings.sequence_length:
            return split
    return None


def _splits(settings: TextSettings) -> tuple[Split, ...]:
    return ("train", "validation") if settings.validation_fraction else ("train",)


def _why(left_out: Sequence[LeftOut]) -> str:
    return f" ({shown(left_out[0].name)}: {left_out[0].reason})" if left_out else ""


def _trained_tokenizer(settings: TextSettings, corpus: Corpus) -> Tokenizer:
    with progress("reading for the tokenizer", corpus.bytes) as advance:

        def texts() -> Iterator[str]:
            share = TRAINING_BYTES / max(corpus.bytes, 1)
            for document in corpus.documents():
                advance(document.consumed)
                if fraction("tokenizer", document.text) < share and not _is_held_out(settings, document.text):
                    yield document.text

        return train_tokenizer(texts(), settings.vocabulary_size)


def _write_splits(
    settings: TextSettings, corpus: Corpus, tokenizer: Tokenizer, folder: Path
) -> tuple[TextManifest, ...]:
    packing = Packing(settings.sequence_length, settings.shard_samples)
    with ExitStack() as stack:
        advance = stack.enter_context(progress("tokenizing", corpus.bytes))
        train, *validation = [
            stack.enter_context(SplitWriter(folder, name, tokenizer, packing)) for name in _splits(settings)
        ]
        for chunk, ids in encode_chunks(partial(encode_texts, tokenizer), _chunks(corpus), settings.workers):
            for text, document in zip(chunk.texts, ids, strict=True):
                held_out = _is_held_out(settings, text)
                (validation[0] if held_out else train).add(document)
            advance(chunk.consumed)
        return (train.finish(), *(split.finish(train.counts_V) for split in validation))


def _chunks(corpus: Corpus) -> Iterator[Chunk]:
    """It yields documents in portions that are worth a trip to another process."""
    texts: list[str] = []
    consumed = characters = 0
    for document in corpus.documents():
        texts.append(document.text)
        consumed += document.consumed
        characters += len(document.text)
        if characters >= CHUNK_CHARACTERS:
            yield Chunk(tuple(texts), consumed)
            texts, consumed, characters = [], 0, 0
    if texts:
        yield Chunk(tuple(texts), consumed)


def _is_held_out(settings: TextSettings, text: str) -> bool:
    """It tells whether a document belongs to the validation split: by its content, so that copies stay together."""
    return fraction(f"validation/{settings.seed}", text) < settings.validation_fraction


def fraction(purpose: str, text: str) -> float:
    """It returns a number in [0, 1) that follows from `text` and differs between purposes."""
    digest = hashlib.blake2b(
        text.encode(), digest_size=8, person=hashlib.sha256(purpose.encode()).digest()[:16]
    )
    return int.from_bytes(digest.digest(), "big") / 2**64
