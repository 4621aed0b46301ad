"""What a checkpoint must agree with, each with its own reason."""

from dataclasses import replace
from typing import Any

import pytest

from pretrain.checkpoint.compatibility import Compatibility
from pretrain.checkpoint.manifest import CheckpointLayout, Manifest
from pretrain.models.outline import Outline
from pretrain.step import TrainState

LAYOUT = CheckpointLayout(tensor=2, pipeline=1, data=1, zero_stage=1, dtype="bf16")
RUN = Compatibility(
    LAYOUT, False, Outline(()), architecture="c0ffee", data_fingerprint="f00d", optimizer="adamw"
)


def manifest(**fields: Any) -> Manifest:
    return Manifest(
        tag="step00000100-a1",
        layout=LAYOUT,
        config_digest="c0ffee",
        data_fingerprint="f00d",
        optimizer="adamw",
        run_id="r",
        state=TrainState(step=100),
        files={},
        tensors={},
        versions={},
        **fields,
    )


def test_a_checkpoint_of_the_same_run_is_taken() -> None:
    assert RUN.reason(manifest()) == ""


def test_another_layout_is_taken_where_it_may_be_converted() -> None:
    other = manifest().model_copy(update={"layout": LAYOUT.model_copy(update={"tensor": 1, "zero_stage": 0})})
    assert "(tensor 1 -> 2, zero_stage 0 -> 1)" in RUN.reason(other)
    assert replace(RUN, converts=True).reason(other) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layout": LAYOUT.model_copy(update={"tensor": 1})}, "another layout (tensor 2 -> 1)"),
        ({"architecture": "decaf"}, "another model"),
        ({"data_fingerprint": "dead"}, "other data"),
        ({"optimizer": "sgd"}, "the state of another optimizer, adamw; restore optimizer.kind"),
    ],
)
def test_another_run_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    told = replace(RUN, **change).reason(manifest())
    assert reason in told
    changed = replace(RUN, **change, changes="data.shuffle True -> False")
    assert changed.reason(manifest()) == f"{told} (changed: data.shuffle True -> False)"


def test_settings_that_have_changed_are_no_reason_by_themselves() -> None:
    assert replace(RUN, changes="run.steps 8 -> 9").reason(manifest()) == ""
