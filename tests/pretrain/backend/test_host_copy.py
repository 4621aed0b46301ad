"""Copies hold what was there, share what was shared, and use their memory again."""

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from support.distributed import run_distributed
from support.runs import contents, differences, newest_checkpoint, run_config, run_to_end
from support.training import Layout, slow

from pretrain.backend.host_copy import HostCopies


def tree(scale: float) -> dict[str, Any]:
    weight = torch.full((4, 3), scale)
    named = OrderedDict(embedding=weight, head=weight)
    vars(named)["_metadata"] = {"version": 1}
    flat = torch.arange(6.0) * scale
    return {
        "module": named,
        "shards": [flat[:2], flat[2:]],
        "step": int(scale),
        "none": None,
        "pair": (1, "a"),
    }


def test_a_copy_stays_as_it_was_taken() -> None:
    state = tree(2.0)
    copy = HostCopies().take("file", state)
    state["module"]["head"].zero_()
    state["shards"][0].zero_()
    assert differences(copy, tree(2.0)) == []
    assert isinstance(copy["module"], OrderedDict)
    assert copy["module"]._metadata == {"version": 1}


def test_what_has_two_names_is_held_and_written_once(tmp_path: Path) -> None:
    copy = HostCopies().take("file", tree(2.0))
    assert copy["module"]["embedding"] is copy["module"]["head"]
    torch.save(copy, tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", weights_only=True)["module"]
    assert read["embedding"].data_ptr() == read["head"].data_ptr()


def test_memory_is_used_again_and_names_do_not_disturb_each_other() -> None:
    copies = HostCopies()
    first, other = copies.take("file", tree(1.0)), copies.take("other", tree(5.0))
    again = copies.take("file", tree(2.0))
    assert again["shards"][1].data_ptr() == first["shards"][1].data_ptr()
    assert differences(again, tree(2.0)) == []
    assert differences(other, tree(5.0)) == []
    larger = {"module": torch.ones(100), "step": 3}
    assert differences(copies.take("file", larger), larger) == []


def test_without_room_there_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = HostCopies()
    copies.take("file", tree(1.0))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    assert copies.take("other", tree(1.0)) is None
    assert copies.take("file", tree(2.0)) is not None  # that memory is ours already


def test_memory_that_is_refused_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of pinned memory")

    copies = HostCopies()
    with monkeypatch.context() as patch:
        patch.setattr("pretrain.backend.host_copy.copied_tensor", refuse)
        assert copies.take("file", tree(1.0)) is None
    assert differences(copies.take("file", tree(2.0)), tree(2.0)) == []


LAYOUTS = [
    Layout(tensor=2, pipeline=2),
    slow(Layout(data=2, zero=1, dtype="bf16")),
    slow(Layout(data=2, zero=2)),
    slow(Layout(data=2, zero=3)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_a_thread_writes_is_what_the_run_would_have_written(
    layout: Layout, corpus: Path, tmp_path: Path
) -> None:
    """While the thread writes, the run goes on and changes its weights."""
    for name, background in (("now", False), ("later", True)):
        every = {"every_steps": 3, "keep_last": 9, "background": background}
        config = run_config(layout, tmp_path / name, corpus, checkpoint=every)
        assert set(run_distributed(run_to_end, layout.world_size, config)) == {"finished"}
    checkpoints = tmp_path / "now/test/checkpoints"
    tags = sorted(path.name for path in checkpoints.iterdir() if path.is_dir())
    assert len(tags) == 3
    for tag in tags:
        ours, theirs = contents(tmp_path / "later/test/checkpoints" / tag), contents(checkpoints / tag)
        assert differences(ours, theirs) == []
    assert newest_checkpoint(tmp_path / "now").name == newest_checkpoint(tmp_path / "later").name
