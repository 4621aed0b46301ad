"""Plans of encoders of speech: sizes worked out by hand, and data that does not fit."""

from pathlib import Path
from typing import Any

import pytest
from support.speech_model import MAX_SECONDS, MEL_BINS, UNITS, speech_config
from support.training import Layout

from pretrain.config.loader import load_config
from pretrain.plan.plan import plan
from pretrain.tasks.speech.config import output_frames

CONFIGS = Path(__file__).parents[4] / "configs" / "speech"
FRAMES, T, D = 58, 20, 32


def test_flops_and_parameters_of_the_ends_by_hand() -> None:
    """0.6 seconds at 8 kHz are 4,800 samples: 58 windows of 200 with a hop of 80, and an output for each three."""
    config = speech_config(Layout())
    assert config.data.max_frames == FRAMES
    assert output_frames(FRAMES, 3) == T
    outline = config.model.outline(config.data)
    assert outline.layers[0].size == 2 * D * (MEL_BINS * 7 + 1)
    assert outline.layers[0].flops == 6 * 2 * D * MEL_BINS * 7 * T
    assert outline.layers[-1].size == UNITS * (D + 1)
    assert outline.layers[-1].activations.wide == 2 * UNITS * T


def test_slow_speech_is_longer() -> None:
    config = speech_config(Layout(), augmentation={"speeds": [0.5, 1.0]})
    assert config.data.max_frames == 1 + (2 * 4800 - 200) // 80


@pytest.mark.parametrize("layers", [36, 72, 108])
def test_clusters_train_the_depth_in_their_names(layers: int) -> None:
    config = load_config(CONFIGS / f"librispeech-{layers}.toml")
    assert config.model.num_layers == layers
    assert plan(config, 16).parameters.total == pytest.approx(layers * 7.1e6, rel=0.02)


def facts(**changes: Any) -> dict[str, Any]:
    """What a manifest says of data that fits the model, or not."""
    units = {"file": "units.json", "sha256": "ab", "count": UNITS}
    fitting = {"sample_rate": 8000, "longest_seconds": MAX_SECONDS, "frame_seconds": 0.033}
    return {"units": units, **fitting, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"units": {"file": "units.json", "sha256": "ab", "count": 29}},
            "model.vocabulary_size = 11: the data has 29 units, the blank included; set model.vocabulary_size = 29",
        ),
        ({"sample_rate": 16000}, "data.sample_rate = 8000: the data has 16000; set data.sample_rate = 16000"),
        (
            {"longest_seconds": 2.5},
            "data.max_seconds = 0.6: the data has an utterance of 2.50 seconds; set data.max_seconds = 2.50",
        ),
        (
            {"frame_seconds": 0.02},
            "model.subsampling.stride = 3: gives an output every 0.03 seconds of the fastest audio, and the data was "
            "made for models with one every 0.02",
        ),
        ({}, ""),
    ],
)
def test_data_must_be_what_the_model_is_made_for(changes: dict[str, Any], told: str) -> None:
    config = speech_config(Layout())
    found = [str(problem) for problem in config.model.data_problems(config.data, facts(**changes))]
    assert len(found) == bool(told)
    assert not told or found[0].startswith(told)


def test_the_advice_for_data_whose_last_hops_have_no_output_works() -> None:
    config = speech_config(Layout(), {"subsampling": {"kernel": 3, "stride": 2}})
    (found,) = config.model.data_problems(config.data, facts(frame_seconds=0.02))
    assert found.rule.startswith(
        "gives an output every 0.02 seconds of the fastest audio and none for the last hops"
    )
    advised = float(found.remedy.rpartition(" ")[2])
    assert 0.02 < advised < 0.03
    assert list(config.model.data_problems(config.data, facts(frame_seconds=advised))) == []


def test_an_even_kernel_is_told() -> None:
    config = speech_config(Layout(), {"subsampling": {"kernel": 4, "stride": 2}})
    (found,) = config.model.problems(config.data, config.parallel)
    assert str(found).startswith("model.subsampling.kernel = 4: must be odd")


def test_lengths_bind_a_checkpoint_where_positions_are_learned() -> None:
    rotary, learned = (speech_config(Layout(), {"positions": kind}) for kind in ("rotary", "learned"))
    assert "max_seconds" not in rotary.model.shape(rotary.data)
    assert learned.model.shape(learned.data)["max_seconds"] == MAX_SECONDS
    assert rotary.model.shape(rotary.data)["mel_bins"] == MEL_BINS
    assert not {"cape", "layer_drop", "dropout"} & rotary.model.shape(rotary.data).keys()
