"""The sources of a run, opened and checked against the configuration and each other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.errors import DataError
from data_pipeline.reading.order import SampleOrder, SourceShape
from data_pipeline.shards.dataset import Dataset, split_folder
from data_pipeline.shards.manifest import MANIFEST, TextManifest, TokenizerEntry, read_manifest
from data_pipeline.shards.storage import Folder


@dataclass(frozen=True)
class Mixture:
    """Opened sources with their weights."""

    sources: tuple[Dataset[TextManifest], ...]
    weights: tuple[float, ...]

    @property
    def manifest(self) -> TextManifest:
        """Of the first source; in sequence length and tokenizer the others agree with it."""
        return self.sources[0].manifest

    @property
    def tokenizer(self) -> TokenizerEntry:
        """The tokenizer of all sources."""
        return self.manifest.tokenizer

    def order(self, seed: int, shuffle: bool) -> SampleOrder:
        """The order in which the samples come. Raises DataError when a weight is too small."""
        shapes = (
            SourceShape(source.manifest.fingerprint, len(source), weight)
            for source, weight in zip(self.sources, self.weights, strict=True)
        )
        try:
            return SampleOrder(seed, tuple(shapes), shuffle)
        except ValueError as error:
            raise DataError(f"data.sources: {error}") from error

    def facts(self) -> dict[str, Any]:
        """All that decides which samples come, under the names that a message would use."""
        facts: dict[str, Any] = {
            "kind": self.manifest.kind,
            "sequence_length": self.manifest.sequence_length,
            "tokenizer": self.tokenizer.sha256,
            "sources": len(self.sources),
        }
        for number, (source, weight) in enumerate(zip(self.sources, self.weights, strict=True)):
            facts[f"sources.{number}.fingerprint"] = source.manifest.fingerprint
            facts[f"sources.{number}.weight"] = weight
        return facts

    def close(self) -> None:
        """Close all files."""
        for source in self.sources:
            source.close()


def training_mixture(data: DataConfig) -> Mixture:
    """Open the training sources. Raises DataError when they are missing or do not fit together."""
    folders = [split_folder(source.path, "train", data.cache) for source in data.sources]
    return _open(folders, data.sources, data)


def validation_mixture(data: DataConfig) -> Mixture:
    """Open the validation sources, by default the validation split beside each training source.

    Raises DataError when they are missing or do not fit together or the training sources.
    """
    sources = data.validation or data.sources
    if data.validation:
        folders = [split_folder(source.path, "validation", data.cache) for source in data.validation]
    else:
        folders = [_validation_beside(source, data) for source in data.sources]
    mixture = _open(folders, sources, data)
    train = split_folder(data.sources[0].path, "train", data.cache)
    _check_tokenizers(mixture.sources[0], train.name, read_manifest(train, TextManifest))
    return mixture


def _validation_beside(source: SourceConfig, data: DataConfig) -> Folder:
    train = split_folder(source.path, "train", data.cache)
    folder = train.parent().child("validation")
    if not folder.has(MANIFEST):
        raise DataError(
            f"{train.name}: no validation split beside it ({folder.name}/{MANIFEST}); "
            "prepare with --validation-fraction above 0, or set data.validation"
        )
    return folder


def _open(folders: Sequence[Folder], sources: Sequence[SourceConfig], data: DataConfig) -> Mixture:
    opened = tuple(Dataset(folder, TextManifest) for folder in folders)
    for source in opened:
        _check_length(source, data)
        _check_tokenizer_file(source)
        _check_tokenizers(source, opened[0].name, opened[0].manifest)
    return Mixture(opened, tuple(source.weight for source in sources))


def _check_length(source: Dataset[TextManifest], data: DataConfig) -> None:
    manifest = source.manifest
    if manifest.sequence_length != data.sequence_length:
        raise DataError(
            f"{source.name}: packed for sequences of {manifest.sequence_length} tokens, but "
            f"data.sequence_length is {data.sequence_length}; set it to {manifest.sequence_length} "
            "or prepare the data again"
        )


def _check_tokenizer_file(source: Dataset[TextManifest]) -> None:
    """Where the tokenizer still lies beside its shards, it must be theirs."""
    folder, entry = source.folder.parent(), source.manifest.tokenizer
    if (
        folder.has(entry.file)
        and (found := hashlib.sha256(folder.read(entry.file)).hexdigest()) != entry.sha256
    ):
        raise DataError(
            f"{folder.name}/{entry.file}: not the tokenizer that {source.name} was made with: "
            f"SHA-256 is {found}, the manifest says {entry.sha256}"
        )


def _check_tokenizers(source: Dataset[TextManifest], other_name: str, other: TextManifest) -> None:
    mine, its = source.manifest.tokenizer.sha256, other.tokenizer.sha256
    if mine != its:
        raise DataError(
            f"{source.name}: made with tokenizer {mine[:16]}, but {other_name} with {its[:16]}; "
            "prepare one with the --tokenizer of the other"
        )
