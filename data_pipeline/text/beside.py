"""Tokenizers lie beside the shards that were made with them."""

import hashlib
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Dataset
from data_pipeline.text.manifest import TokenizerEntry
from data_pipeline.text.tokenizer import Tokenizer


def check_beside(dataset: Dataset[Any], entry: TokenizerEntry) -> None:
    """It raises DataError when a tokenizer lies beside the shards and is not theirs."""
    folder = dataset.folder.parent()
    if (
        folder.has(entry.file)
        and (found := hashlib.sha256(folder.read(entry.file)).hexdigest()) != entry.sha256
    ):
        raise DataError(
            f"{folder.name}/{entry.file}: not the tokenizer that {dataset.name} was made with: "
            f"SHA-256 is {found}, the manifest says {entry.sha256}"
        )


def tokenizer_beside(dataset: Dataset[Any], entry: TokenizerEntry) -> Tokenizer:
    """It returns the tokenizer that lies beside the shards; that it is theirs was checked when they were opened.

    Raises DataError where it does not lie there any more.
    """
    folder = dataset.folder.parent()
    if not folder.has(entry.file):
        raise DataError(f"{folder.name}/{entry.file}: the tokenizer does not lie beside its shards any more")
    return Tokenizer(folder.read(entry.file), f"{folder.name}/{entry.file}")
