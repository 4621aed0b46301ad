"""Blocks become batches only if they are what the manifest says: length, type, and ids that there are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.numbered_data import LENGTH, VOCABULARY, write_split

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.storage import LocalFolder
from data_pipeline.text.blocks import BlockCodec
from data_pipeline.text.collate import TokenCollator
from data_pipeline.text.manifest import TextManifest


@pytest.fixture
def manifest(tmp_path: Path) -> TextManifest:
    return Dataset(LocalFolder(write_split(tmp_path, 3) / "train"), TextManifest).manifest


def sample(block: Any, dtype: str = "<u2") -> Sample:
    codec = BlockCodec(LENGTH, "uint16")
    content = codec.encode(np.zeros(LENGTH + 1, np.uint16))["npy"]
    head = content[: -2 * (LENGTH + 1)]
    return Sample(
        "data/train",
        (memoryview(head + np.array(block, dtype).tobytes()),),
        shard="text-000000.tar",
        number=4,
    )


def test_the_last_id_of_the_vocabulary_is_read(manifest: TextManifest) -> None:
    batch = TokenCollator(manifest)([sample([0, 1, 2, 3, VOCABULARY - 1])])
    assert batch.targets_BS.tolist() == [[1, 2, 3, VOCABULARY - 1]]


@pytest.mark.parametrize(
    ("block", "dtype", "message"),
    [
        ([0, 0, VOCABULARY, 0, 0], "<u2", f"has the id {VOCABULARY}, but the tokenizer has {VOCABULARY} ids"),
        ([2**16 - 1, 0, 0, 0, 0], "<u2", "has the id 65535"),
        ([0, 0, 0, 0, -1], "<i2", "has the id 65535"),
        ([0, 0, 0, 0], "<u2", "is not 5 ids of type uint16"),
        ([0, 0, 0, 0, 0], "<u4", "is not 5 ids of type uint16"),
        ([], "<u2", "is not 5 ids of type uint16"),
    ],
)
def test_what_is_no_block_is_named_by_shard_and_sample(
    manifest: TextManifest, block: list[int], dtype: str, message: str
) -> None:
    with pytest.raises(DataError, match=rf"^data/train/text-000000\.tar: sample 4 {message}"):
        TokenCollator(manifest)([sample([0] * (LENGTH + 1)), sample(block, dtype)])


def test_an_empty_member_is_no_block(manifest: TextManifest) -> None:
    with pytest.raises(DataError, match="sample 0 is not 5 ids"):
        TokenCollator(manifest)([Sample("data", (memoryview(b""),))])
