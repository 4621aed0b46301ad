"""A run on pairs that is stopped within an epoch goes on as if it had not been, also with other data ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.pairs import RUN_VOCABULARY, pairs_run, write_pairs
from support.resumes import course, stop_twice
from support.runs import contents, differences, newest_checkpoint, run_and_stop, run_to_end
from support.training import Layout, slow

from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError

PAIRS = 54
"""A global batch has 12: no epoch ends with a step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 12, first=PAIRS, split="validation", vocabulary=RUN_VOCABULARY)
    return write_pairs(folder, PAIRS, vocabulary=RUN_VOCABULARY)


def parts(
    layouts: Sequence[Layout], folder: Path, data: Path, **sections: Any
) -> list[tuple[RunConfig, int]]:
    return [(pairs_run(layout, folder, data, **sections), layout.world_size) for layout in layouts]


EXACT = [
    Layout(data=2, zero=1, accumulation=3),
    slow(Layout(accumulation=6)),
    slow(Layout(data=2, zero=3, accumulation=3)),
    slow(Layout(tensor=2, pipeline=2, accumulation=6)),
    slow(Layout(dtype="bf16", pipeline=2, data=2, zero=1, accumulation=3)),
]


@pytest.mark.parametrize("layout", EXACT, ids=str)
def test_resumed_is_uninterrupted_to_the_bit(layout: Layout, data: Path, tmp_path: Path) -> None:
    dropout = {"model": {"dropout": 0.1, "attention": {"num_heads": 4, "dropout": 0.1}}}
    twin = pairs_run(layout, tmp_path / "twin", data, **dropout)
    assert set(run_distributed(run_to_end, layout.world_size, twin)) == {"finished"}
    stop_twice(parts([layout] * 3, tmp_path / "run", data, **dropout))
    assert course(tmp_path / "run") == course(tmp_path / "twin")
    ours, theirs = (newest_checkpoint(tmp_path / name) for name in ("run", "twin"))
    assert differences(contents(ours), contents(theirs)) == []


ONE, TWO = Layout(zero=1, accumulation=6), Layout(data=2, zero=1, accumulation=3)
OTHERS = Layout(data=3, zero=2, accumulation=1)
"""Micro-batches of four pairs instead of two."""


@pytest.mark.parametrize("layouts", [(TWO, ONE, TWO), slow((ONE, TWO, OTHERS))], ids=str)
def test_other_data_ranks_go_on_with_the_same_pairs(
    layouts: tuple[Layout, Layout, Layout], data: Path, tmp_path: Path
) -> None:
    assert run_distributed(run_to_end, 1, pairs_run(ONE, tmp_path / "twin", data)) == ["finished"]
    stop_twice(parts(layouts, tmp_path / "run", data))
    ours, theirs = course(tmp_path / "run"), course(tmp_path / "twin")
    assert ours["samples"] == theirs["samples"]
    assert ours["tokens"] == theirs["tokens"]
    assert len({*ours["tokens"].values()}) == 8, "else they do not tell one step's pairs from another's"
    for key in ("loss", "gradient_norm", "validation_loss"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key


def refusal(config: RunConfig) -> str:
    try:
        return run_to_end(config)
    except CheckpointError as error:
        return str(error)


def test_another_bucket_size_is_refused_by_its_name(data: Path, tmp_path: Path) -> None:
    assert run_distributed(run_and_stop, 1, pairs_run(ONE, tmp_path, data), 1) == ["preempted"]
    changed = pairs_run(ONE, tmp_path, data, data={"bucket_size": 4})
    (told,) = run_distributed(refusal, 1, changed)
    assert "belongs to other data than the run's, or to another order of it" in told
    assert told.endswith("(changed: data.bucket_size 2 -> 4)")
