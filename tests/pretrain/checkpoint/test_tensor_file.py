"""Files of tensors: what the format's own library reads and writes, and nothing that lies about itself."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pretrain.checkpoint.tensor_file import DTYPES, TensorEntry, TensorFile, TensorFileWriter
from pretrain.errors import CheckpointError

TENSORS = {
    "b": torch.arange(12, dtype=torch.float32).view(3, 4),
    "a": torch.tensor([1.5, -0.0, float("nan"), 3.4e38]).bfloat16(),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 5),
    "flags": torch.tensor([True, False]),
}


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    entries = {name: TensorEntry.of(tensor) for name, tensor in tensors.items()}
    with TensorFileWriter(path, entries, metadata) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    return path


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8)
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(*bits)


def test_the_library_of_the_format_reads_what_is_written(tmp_path: Path) -> None:
    found = load_file(write(tmp_path / "file", TENSORS, who="me"))
    assert found.keys() == TENSORS.keys()
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "file", {"who": "me"})
    file = TensorFile(tmp_path / "file")
    assert file.metadata == {"who": "me"}
    assert file.entries.keys() == TENSORS.keys()
    assert all(same(file.read(name), tensor) for name, tensor in TENSORS.items())


def test_runs_of_elements(tmp_path: Path) -> None:
    file = TensorFile(write(tmp_path / "file", TENSORS))
    assert file.read_flat("b", 3, 7).tolist() == [3, 4, 5, 6]
    assert same(file.read_flat("a", 1, 2), TENSORS["a"][1:2])
    for start, stop in ((-1, 2), (0, 13), (4, 3)):
        with pytest.raises(CheckpointError, match="no elements"):
            file.read_flat("b", start, stop)
    with pytest.raises(CheckpointError, match="no tensor c"):
        file.read("c")


def test_tensors_come_in_their_order_and_all_of_them(tmp_path: Path) -> None:
    entries = {name: TensorEntry(torch.float32, (2,)) for name in "ab"}
    file = TensorFileWriter(tmp_path / "order", entries)
    with pytest.raises(ValueError, match="not b "):
        file.write("b", torch.zeros(2))
    with pytest.raises(ValueError, match="comes next"), TensorFileWriter(tmp_path / "shape", entries) as file:
        file.write("a", torch.zeros(3))
    with pytest.raises(ValueError, match="b was never"), TensorFileWriter(tmp_path / "less", entries) as file:
        file.write("a", torch.zeros(2))
    with pytest.raises(FileExistsError):
        TensorFileWriter(tmp_path / "less", entries)


def spelled(header: object, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {
    "nothing": b"",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n",
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "no JSON": struct.pack("<Q", 2) + b"[[",
    "a list": spelled([ENTRY]),
    "a type that there is not": spelled({"a": {**ENTRY, "dtype": "F31"}}),
    "a shape of 10^30 rows": spelled({"a": {**ENTRY, "shape": [10**30]}}),
    "a negative shape": spelled({"a": {**ENTRY, "shape": [-1, -2]}}),
    "a shape in words": spelled({"a": {**ENTRY, "shape": ["2"]}}),
    "fractions": spelled({"a": {**ENTRY, "data_offsets": [0.0, 8.0]}}),
    "a gap": spelled({"a": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)),
    "two in one place": spelled({"a": ENTRY, "b": ENTRY}),
    "bytes at the end": spelled({"a": ENTRY}, bytes(9)),
    "bytes missing": spelled({"a": ENTRY}, bytes(7)),
    "metadata that is no text": spelled({"__metadata__": {"a": 1}, "a": ENTRY}),
    "no offsets": spelled({"a": {"dtype": "F32", "shape": [2]}}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LIES[lie])
    with pytest.raises(CheckpointError, match="file"):
        TensorFile(tmp_path / "file")


def test_a_pointer_is_told_from_tensors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LIES["a pointer of Git LFS"])
    with pytest.raises(CheckpointError, match="`git lfs pull` fetches them"):
        TensorFile(tmp_path / "file")


def test_tensors_of_another_file_are_not_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "file", {"a": torch.zeros(3)})
    file = TensorFile(path)
    assert file.read("a").tolist() == [0, 0, 0]
    write(tmp_path / "other", {"a": torch.ones(3)}).rename(path)
    with pytest.raises(CheckpointError, match="was changed or replaced while it was read"):
        file.read("a")


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_any_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[str, list[int]]]
) -> None:
    tensors = {name: torch.ones(shape, dtype=DTYPES[dtype]) for name, (dtype, shape) in kinds.items()}
    file = TensorFile(write(tmp_path_factory.mktemp("any") / "file", tensors))
    assert list(file.entries) == list(tensors) or not all(t.numel() for t in tensors.values())
    assert all(same(file.read(name), tensor) for name, tensor in tensors.items())
