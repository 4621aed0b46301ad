"""Packing loses nothing but the tail, and every token is a target once."""

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.text.blocks import BlockCodec, BlockPacker, token_type

END = 9


@given(st.lists(st.lists(st.integers(0, 8), max_size=30), max_size=12), st.integers(1, 12))
def test_every_token_but_the_tail_is_a_target_once(documents: list[list[int]], length: int) -> None:
    packer = BlockPacker(length, END, "uint16")
    blocks = [block for ids in documents for block in packer.add(np.array(ids, np.uint16))]
    stream = [END]
    for ids in documents:
        stream += [*ids, END]
    targets = [token for block in blocks for token in block[1:].tolist()]
    assert all(len(block) == length + 1 for block in blocks)
    assert targets == stream[1 : 1 + len(blocks) * length]
    assert len(stream) - 1 - len(targets) < length
    assert all(before[-1] == after[0] for before, after in pairwise(blocks))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_block_is_a_npy_file(dtype: str) -> None:
    codec = BlockCodec(5, dtype)
    block = np.array([1, 2, 3, 65535, 0, 7])
    content = codec.encode(block)["npy"]
    loaded = np.load(io.BytesIO(content))
    assert loaded.dtype == np.dtype(dtype)
    assert loaded.tolist() == block.tolist()
    assert codec.decode([memoryview(content)]).tolist() == block.tolist()


@pytest.mark.parametrize("other", [BlockCodec(4, "uint16"), BlockCodec(5, "uint32")])
def test_a_block_of_another_kind_is_refused(other: BlockCodec) -> None:
    content = other.encode(np.zeros(other.sequence_length + 1))["npy"]
    with pytest.raises(ValueError, match="not 6 ids of type uint16"):
        BlockCodec(5, "uint16").decode([memoryview(content)])


def test_the_smallest_type_that_holds_the_vocabulary() -> None:
    assert (token_type(65536), token_type(65537)) == ("uint16", "uint32")
