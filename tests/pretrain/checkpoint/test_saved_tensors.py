"""Tensors of a checkpoint of any layout: shares and runs are put together, and what is not whole is refused."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.checkpoint.manifest import CheckpointLayout, FileRecord, Manifest, TensorRecord
from pretrain.checkpoint.saved_tensors import SavedTensors, put_share, take_share
from pretrain.checkpoint.tensor_file import TensorEntry, TensorFileWriter
from pretrain.errors import CheckpointError, Unreadable
from pretrain.models.named import key_of
from pretrain.step import TrainState

QKV = TensorRecord(shape=(16, 3), sharded=0, stacked=(8, 4, 4))
OUTPUT = TensorRecord(shape=(3, 8), sharded=1)
NORM = TensorRecord(shape=(5,))
TENSORS = {"a.qkv": QKV, "a.output": OUTPUT, "a.norm": NORM}
WHOLE = {
    name: torch.arange(torch.Size(cut.shape).numel()).float().view(cut.shape) for name, cut in TENSORS.items()
}

Files = list[dict[str, Tensor]]
"""Tensors of each rank by key."""


def saved(folder: Path, files: Files, tensor: int) -> SavedTensors:
    for rank, tensors in enumerate(files):
        entries = {key: TensorEntry.of(value) for key, value in tensors.items()}
        with TensorFileWriter(folder / f"state_{rank:05d}.safetensors", entries) as file:
            for key, value in tensors.items():
                file.write(key, value)
    record = {"size": 1, "sha256": "0" * 64}
    manifest = Manifest(
        tag="step00000001-a1",
        layout=CheckpointLayout(
            tensor=tensor, pipeline=1, data=len(files) // tensor, zero_stage=1, dtype="fp32"
        ),
        config_digest="",
        data_fingerprint="",
        optimizer="adamw",
        run_id="r",
        state=TrainState(step=1),
        files={
            f"state_{rank:05d}.safetensors": FileRecord(**record, rank=rank) for rank in range(len(files))
        },
        tensors=TENSORS,
        versions={},
    )
    return SavedTensors(folder, manifest)


def cut_up(tensor: int, data: int, cuts: list[int]) -> Files:
    """What ranks with ZeRO would write: of every share a run each, which end at `cuts` hundredths of it."""
    files: Files = [{} for _ in range(tensor * data)]
    for name, cut in TENSORS.items():
        for rank in range(1 if cut.sharded is None else tensor):
            share = take_share(WHOLE[name], cut, rank, tensor).reshape(-1)
            ends = [0, *(len(share) * end // 100 for end in sorted(cuts)), len(share)]
            for replica, (start, stop) in enumerate(pairwise(ends)):
                if start < stop:
                    files[replica * tensor + rank][key_of(name, start=start)] = share[start:stop].clone()
    return files


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.lists(st.integers(0, 100), min_size=2, max_size=2),
)
def test_whatever_lies_where_the_tensors_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, tensor: int, other: int, cuts: list[int]
) -> None:
    found = saved(tmp_path_factory.mktemp("saved"), cut_up(tensor, 3, cuts), tensor)
    for name, cut in TENSORS.items():
        assert torch.equal(found.read(name), WHOLE[name])
        for rank in range(other):
            share = take_share(WHOLE[name], cut, rank, other).reshape(-1)
            for start, count in ((0, len(share)), (1, len(share) - 2), (len(share), 0)):
                read = found.read_share(name, "weight", cut, rank, other, start, count)
                assert torch.equal(read, share[start : start + count])


def test_shares_of_another_division_are_cut_from_the_whole(tmp_path: Path) -> None:
    found = saved(tmp_path, cut_up(2, 1, []), 2)
    otherwise = TensorRecord(shape=(16, 3), sharded=0)
    read = found.read_share("a.qkv", "weight", otherwise, 1, 2, 0, 24)
    assert torch.equal(read, WHOLE["a.qkv"][8:].reshape(-1))
    copies = TensorRecord(shape=(16, 3))
    assert torch.equal(found.read_share("a.qkv", "weight", copies, 1, 2, 0, 48), WHOLE["a.qkv"].reshape(-1))


@pytest.mark.parametrize("cut", [QKV, OUTPUT], ids=["stacked rows", "columns"])
def test_what_is_taken_goes_back_where_it_was(cut: TensorRecord) -> None:
    whole = torch.rand(cut.shape)
    again = torch.full_like(whole, float("nan"))
    for rank in range(4):
        put_share(take_share(whole, cut, rank, 4), again, cut, rank, 4)
    assert torch.equal(again, whole)


def without(key: str) -> Callable[[Files], object]:
    return lambda files: [tensors.pop(key, None) for tensors in files]


LIES: dict[str, tuple[Callable[[Files], object], str]] = {
    "a share is missing": (
        lambda files: files[1].pop("weight/a.qkv@0"),
        "a.qkv is not there with every element",
    ),
    "a tensor is missing": (without("weight/a.norm@0"), "no file has a.norm"),
    "a run twice": (
        lambda files: files[0].update({"weight/a.norm": torch.zeros(5)}),
        "a.norm is not there with every element once",
    ),
    "a gap": (
        lambda files: files[0].update({"weight/a.norm@0": torch.zeros(4)}),
        "a.norm is not there with every element once",
    ),
    "too long": (
        lambda files: files[0].update({"weight/a.norm@0": torch.zeros(6)}),
        "a.norm is not there with every element once",
    ),
    "of another model": (lambda files: files[0].update({"weight/x": torch.zeros(6)}), "weight/x is nothing"),
    "no place": (
        lambda files: files[0].update({"weight/a.norm@-1": torch.zeros(5)}),
        "is nothing of the model",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_whole_is_refused(lie: str, tmp_path: Path) -> None:
    change, told = LIES[lie]
    files = cut_up(2, 1, [])
    change(files)
    with pytest.raises(CheckpointError, match=told):
        saved(tmp_path, files, 2)


def test_a_file_that_goes_away_is_named_and_no_damage(tmp_path: Path) -> None:
    found = saved(tmp_path, cut_up(2, 1, []), 2)
    (tmp_path / "state_00001.safetensors").unlink()
    with pytest.raises(Unreadable, match=r"state_00001.safetensors: No such file"):
        found.read("a.qkv")


def test_a_tensor_of_another_shape_is_not_cut_to_fit(tmp_path: Path) -> None:
    found = saved(tmp_path, cut_up(2, 1, []), 2)
    narrow = TensorRecord(shape=(16, 2), sharded=0)
    with pytest.raises(CheckpointError, match=r"a.qkv is \(16, 3\), not \(16, 2\)"):
        found.read_share("a.qkv", "weight", narrow, 0, 2, 0, 16)


WRONG = {
    "more ranks than there can be": {"layout": {"tensor": 2**31 - 1}},
    "no division": {"layout": {"tensor": 3}},
    "a stack of nothing": {"tensors": {"a": {"shape": [], "stacked": [1]}}},
}


@pytest.mark.parametrize("case", WRONG)
def test_manifests_that_no_ranks_can_have_written_are_refused(case: str, tmp_path: Path) -> None:
    manifest = saved(tmp_path, cut_up(2, 1, []), 2).manifest.model_dump(mode="json")
    for name, value in WRONG[case].items():
        manifest[name] = {**manifest[name], **value}
    with pytest.raises(ValueError, match=r"tensors|files"):
        Manifest.model_validate_json(json.dumps(manifest))
