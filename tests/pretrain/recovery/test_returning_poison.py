"""Samples that throw a run throw it once, however many epochs they come back in."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpus import write_corpus
from support.distributed import run_distributed
from support.training import Layout
from support.watched import changed, kinds, one, run, story, watched

from data_pipeline.batches import Batch
from data_pipeline.reading.batches import Batches, WrappedBatches
from data_pipeline.reading.skips import Skips
from data_pipeline.reading.stream import BatchStream
from pretrain.config.run import RunConfig
from pretrain.fault_injection.fault import Fault
from pretrain.ledger.record import Kind

BAD = range(100, 148)
"""Numbers of the samples, four steps' worth, whose loss is NaN in every epoch."""
EPOCHS = 4


class PoisonedForGood(WrappedBatches):
    """Whatever the draw, its bad samples are bad."""

    def __next__(self) -> Sequence[Batch]:
        batches: list[Any] = list(next(self.within))
        stream: Any = self.within
        index = iter(stream._order.locate(np.array(stream.own_draws())).index.tolist())
        for place, batch in enumerate(batches):
            rows = [row for row in range(batch.samples) if next(index) in BAD]
            weights = batch.weights_BS.clone()
            weights[rows] = float("nan")
            batches[place] = replace(batch, weights_BS=weights)
        return batches


def run_on_poison(config: RunConfig, for_good: bool) -> str:
    """Without `for_good` what is skipped is skipped in its own epoch alone."""

    def wrapped(fault: Fault, stream: BatchStream[Any, Any]) -> Batches:
        return PoisonedForGood(stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fault, "wrap_batches", wrapped)
        if not for_good:
            patch.setattr(Skips, "affordable", False)
        return run(config)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("poisoned"), documents=150)


def configured(folder: Path, data: Path) -> RunConfig:
    """It is a run of four epochs in the order of the shards, where bad samples stand together."""
    config = watched(Layout(), folder, data)
    with_order = changed(config, data={"shuffle": False})
    manifest = json.loads((data / "train" / "manifest.json").read_text())
    steps = EPOCHS * manifest["samples"] // config.data.global_batch_size
    return changed(with_order, run={"steps": steps}, evaluation={"every_steps": steps})


def test_poison_that_comes_back_every_epoch_costs_one_rollback(data: Path, tmp_path: Path) -> None:
    assert run_distributed(run_on_poison, 1, configured(tmp_path, data), True) == ["finished"]
    assert kinds(tmp_path).count("veto") == 3
    intent = one(tmp_path, Kind.ROLLBACK_INTENT)
    assert intent.fields["onset"] == BAD.start // 12 + 1


def test_without_that_it_throws_the_run_in_every_epoch(data: Path, tmp_path: Path) -> None:
    run_distributed(run_on_poison, 1, configured(tmp_path, data), False)
    assert [r.kind for r in story(tmp_path)].count(Kind.ROLLBACK_INTENT) > 1
