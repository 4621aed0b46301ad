"""A run on speech that is stopped within an epoch goes on as if it had not been, with its masks and speeds, also with
other data ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.resumes import course, stop_twice
from support.runs import contents, differences, newest_checkpoint, run_to_end
from support.speech import DIGITS, LONGEST, RATE, write_speech
from support.speech_model import speech_config
from support.training import Layout, slow

from pretrain.config.run import RunConfig

UTTERANCES = 54
"""A global batch has 12: no epoch ends with a step."""
AUGMENTATION = {
    "speeds": [0.9, 1.0, 1.1],
    "frequency_warp": [0.8, 1.25],
    "frequency_masks": 1,
    "frequency_width": 3,
    "time_masks": 1,
    "time_width": 6,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_speech(folder, 12, first=UTTERANCES, split="validation")
    return write_speech(folder, UTTERANCES)


def speech_run(layout: Layout, folder: Path, data: Path, **model: Any) -> RunConfig:
    """It configures a run of 8 steps in `folder/test`, whose model has an output a frame."""
    base = speech_config(layout, {"vocabulary_size": DIGITS.count, **model}).model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": 8},
        "model": {"subsampling": {"kernel": 3, "stride": 1}},
        "data": {
            "sources": [{"path": str(data)}],
            "sample_rate": RATE,
            "max_seconds": LONGEST,
            "bucket_size": 2,
            "augmentation": AUGMENTATION,
        },
        "checkpoint": {"every_steps": 100, "keep_last": 10},
        "evaluation": {"every_steps": 4, "samples": 12},
        "journal": {"console": "none", "tensorboard": False},
    }
    return RunConfig.model_validate(
        base | {name: {**base[name], **section} for name, section in changes.items()}
    )


def parts(layouts: Sequence[Layout], folder: Path, data: Path, **model: Any) -> list[tuple[RunConfig, int]]:
    return [(speech_run(layout, folder, data, **model), layout.world_size) for layout in layouts]


EXACT = [
    Layout(data=2, zero=1, accumulation=3),
    slow(Layout(accumulation=6)),
    slow(Layout(tensor=2, pipeline=2, accumulation=6)),
    slow(Layout(dtype="bf16", pipeline=2, data=2, zero=1, accumulation=3)),
]


@pytest.mark.parametrize("layout", EXACT, ids=str)
def test_resumed_is_uninterrupted_to_the_bit(layout: Layout, data: Path, tmp_path: Path) -> None:
    chance = {"dropout": 0.1, "layer_drop": 0.2, "positions": "cape"}
    twin = speech_run(layout, tmp_path / "twin", data, **chance)
    assert set(run_distributed(run_to_end, layout.world_size, twin)) == {"finished"}
    stop_twice(parts([layout] * 3, tmp_path / "run", data, **chance))
    assert course(tmp_path / "run") == course(tmp_path / "twin")
    ours, theirs = (newest_checkpoint(tmp_path / name) for name in ("run", "twin"))
    assert differences(contents(ours), contents(theirs)) == []


ONE, TWO = Layout(zero=1, accumulation=6), Layout(data=2, zero=1, accumulation=3)
OTHERS = Layout(data=3, zero=2, accumulation=1)
"""Micro-batches of four utterances instead of two."""


@pytest.mark.parametrize("layouts", [(TWO, ONE, OTHERS), slow((ONE, TWO, OTHERS))], ids=str)
def test_other_data_ranks_go_on_with_the_same_masks_and_speeds(
    layouts: Sequence[Layout], data: Path, tmp_path: Path
) -> None:
    assert run_distributed(run_to_end, 1, speech_run(ONE, tmp_path / "twin", data)) == ["finished"]
    stop_twice(parts(layouts, tmp_path / "run", data))
    ours, theirs = course(tmp_path / "run"), course(tmp_path / "twin")
    assert ours["samples"] == theirs["samples"]
    assert ours["tokens"] == theirs["tokens"], "speeds change the number of frames"
    assert len({*ours["tokens"].values()}) >= 7, "else they do not tell one step's utterances from another's"
    for key in ("loss", "gradient_norm", "validation_loss"):
        assert ours[key] == pytest.approx(theirs[key], rel=2e-5), key
