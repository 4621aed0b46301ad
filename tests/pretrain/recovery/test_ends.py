"""What the last checkpoint of a run is worth, which no later step speaks for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.runs import metrics, newest_checkpoint
from support.training import Layout
from support.watched import changed, kinds, one, run, story, watched

from data_pipeline.batches import Batch
from data_pipeline.reading.batches import Batches, WrappedBatches
from data_pipeline.reading.stream import BatchStream
from pretrain.checkpoint.lifecycle import LATEST
from pretrain.checkpoint.tag import Tag
from pretrain.config.run import RunConfig
from pretrain.fault_injection.fault import Fault
from pretrain.ledger.record import Kind


class OneToken(WrappedBatches):
    """All of its text is one token."""

    def __next__(self) -> Sequence[Batch]:
        batches: Any = next(self.within)
        return [
            replace(
                batch,
                tokens_BS=torch.full_like(batch.tokens_BS, 7),
                targets_BS=torch.full_like(batch.targets_BS, 7),
            )
            for batch in batches
        ]


def run_on_one_token(config: RunConfig) -> str:
    def wrapped(fault: Fault, stream: BatchStream[Any, Any]) -> Batches:
        return OneToken(stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fault, "wrap_batches", wrapped)
        return run(config)


def latest(folder: Path) -> int:
    tag = Tag.parse((folder / "test/checkpoints" / LATEST).read_text())
    assert tag is not None
    return tag.step


def test_a_run_that_has_nothing_to_learn_is_told_and_its_end_not_certified(
    corpus: Path, tmp_path: Path
) -> None:
    config = watched(Layout(), tmp_path, corpus)
    config = changed(config, run={"steps": 200}, optimizer={"learning_rate": 0.1}, model={"dropout": 0.0})
    assert run_distributed(run_on_one_token, 1, config) == ["finished"]
    assert metrics(tmp_path)[200] == 0
    standing = [
        alarm
        for record in story(tmp_path)
        if record.kind is Kind.ALARM
        for alarm in record.fields["alarms"]
        if alarm["kind"] == "still"
    ]
    assert standing[0]["signal"] == "loss"
    assert "rollback_intent" not in kinds(tmp_path)[-5:]
    told = one(tmp_path, Kind.UNPROVEN)
    assert told.fields["reason"] == "the last step was not healthy"
    assert latest(tmp_path) < 200
    assert run_distributed(run, 1, config) == ["finished"]
    assert latest(tmp_path) < 200, "nor by a session that finds nothing left to do"


@pytest.mark.parametrize("fault", ["high_learning_rate@29+2", "high_learning_rate@30"])
def test_harm_in_the_last_steps_leaves_their_checkpoint_without_a_certificate(
    corpus: Path, tmp_path: Path, fault: str
) -> None:
    """The loss of the last update is never seen in training: the validation shows it."""
    config = watched(Layout(), tmp_path, corpus)
    config = changed(config, evaluation={"every_steps": 10}, schedule={"kind": "constant"})
    assert run_distributed(run, 1, config, fault) == ["finished"]
    told = one(tmp_path, Kind.UNPROVEN)
    assert told.step == 30
    assert told.fields["tag"] == newest_checkpoint(tmp_path).name
    assert latest(tmp_path) == 20
