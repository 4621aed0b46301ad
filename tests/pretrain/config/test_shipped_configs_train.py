"""Shipped configurations train with small dimensions: clusters as one process does, deep and narrow models at all of
their depth."""

from functools import lru_cache
from pathlib import Path

import pytest
from support.courses import Losses, largest_difference
from support.distributed import run_distributed
from support.shipped import ShippedRun, shipped_runs, shrunk, shrunk_batches
from support.training import make_engine, make_mesh, proceed, slow

from pretrain.config.run import RunConfig

RUNS = {str(run): run for run in shipped_runs()}
WORLD_SIZE = 4
# Each layout with as many of its ranks as fit on this machine, four: the rest of them are data-parallel.
SCALED = [
    ("gpt/deep/1.3b-one-host", {"tensor": 2, "pipeline": 2}),  # of 2 x 2 x 2
    slow("gpt/deep/1.3b-many-hosts", {"tensor": 1, "pipeline": 2}),  # of 2 x 4 x 4
    slow("gpt/deep/6.7b-one-host", {"tensor": 2, "pipeline": 2}),  # of 4 x 2 x 1
    ("gpt/deep/6.7b-many-hosts", {"tensor": 2, "pipeline": 1}),  # of 4 x 4 x 4
    slow("translation/multi30k", {"tensor": 1, "pipeline": 1}),  # of 1 x 1 x 2
    slow("translation/wmt-6-6", {"tensor": 1, "pipeline": 1}),  # of 1 x 1 x 8
    slow("translation/wmt-18-18", {"tensor": 1, "pipeline": 2}),  # of 1 x 2 x 4
    ("translation/wmt-50-50", {"tensor": 2, "pipeline": 2}),  # of 2 x 2 x 4
    slow("translation/wmt-100-100", {"tensor": 1, "pipeline": 4}),  # of 2 x 4 x 4
    slow("speech/digits", {"tensor": 1, "pipeline": 1}),  # of 1 x 1 x 2
    slow("speech/demo", {"tensor": 1, "pipeline": 1}),  # of 1 x 1 x 2
    slow("speech/librispeech-36", {"tensor": 1, "pipeline": 1}),  # of 1 x 1 x 8
    slow("speech/librispeech-72", {"tensor": 1, "pipeline": 2}),  # of 1 x 2 x 4
    ("speech/librispeech-108", {"tensor": 2, "pipeline": 2}),  # of 2 x 2 x 4
]
DEEP = [
    run for run in RUNS.values() if run.file.startswith(("configs/translation/deep/", "configs/speech/deep"))
]


def train(config: RunConfig) -> Losses:
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [
        engine.step(shrunk_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)[0]
        for step in range(1, 5)
    ]
    return [(report.loss, report.gradient_norm) for report in reports]


@lru_cache
def alone(config: RunConfig) -> Losses:
    (course,) = run_distributed(train, 1, config)
    return course


@pytest.mark.parametrize(("name", "parallel"), SCALED)
def test_tiny_cluster_trains_as_one_process_does(name: str, parallel: dict[str, int], tmp_path: Path) -> None:
    courses = run_distributed(train, WORLD_SIZE, shrunk(RUNS[name], tmp_path, **parallel))
    assert all(course == courses[0] for course in courses), "ranks report different numbers"
    reference = alone(shrunk(RUNS[name], tmp_path, tensor=1, pipeline=1))
    assert largest_difference(courses[0], reference, 0) <= 2e-3  # bf16, as in most of the configurations
    assert largest_difference(courses[0], reference, 1) <= 3e-2


def train_on_one_batch(config: RunConfig) -> list[float]:
    mesh = make_mesh(config.parallel)
    engine, batches = make_engine(config, mesh), shrunk_batches(config, mesh, 1)
    return [engine.step(batches, proceed, step=step, learning_rate=1e-3)[0].loss for step in range(1, 5)]


@pytest.mark.parametrize("run", [*map(slow, DEEP[:-1]), DEEP[-1]], ids=str)
def test_narrow_one_learns_at_its_depth(run: ShippedRun, tmp_path: Path) -> None:
    config = shrunk(run, tmp_path, layers=False)
    blocks = sum(layer.is_block for layer in config.model.outline(config.data).layers)
    assert blocks == {"speech": 24, "translation": 24 + 24}[config.model.kind]
    (losses,) = run_distributed(train_on_one_batch, 1, config)
    assert losses[-1] < losses[0]
