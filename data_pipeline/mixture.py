"""The sources of a run, opened and checked against the configuration and each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.dataset import Dataset, split_folder
from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST, TextManifest, TokenizerEntry
from data_pipeline.order import SampleOrder, SourceShape
from data_pipeline.storage import Folder


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
    if data.validation:
        folders = [split_folder(source.path, "validation", data.cache) for source in data.validation]
        return _open(folders, data.validation, data)
    return _open([_validation_beside(source, data) for source in data.sources], data.sources, data)


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
        _check(source, opened[0], data)
    return Mixture(opened, tuple(source.weight for source in sources))


def _check(source: Dataset[TextManifest], first: Dataset[TextManifest], data: DataConfig) -> None:
    manifest = source.manifest
    if manifest.sequence_length != data.sequence_length:
        raise DataError(
            f"{source.name}: packed for sequences of {manifest.sequence_length} tokens, but "
            f"data.sequence_length is {data.sequence_length}; set it to {manifest.sequence_length} "
            "or prepare the data again"
        )
    if manifest.tokenizer != first.manifest.tokenizer:
        raise DataError(
            f"{source.name}: made with tokenizer {manifest.tokenizer.sha256[:16]}, but {first.name} with "
            f"{first.manifest.tokenizer.sha256[:16]}; prepare one with the --tokenizer of the other"
        )
