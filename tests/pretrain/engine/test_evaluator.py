"""Evaluation needs no optimizer, and sums up any metric over micro-batches and ranks, in every layout alike."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.training import Layout, make_batches, make_config, make_engine, make_evaluator, make_mesh, slow
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.text.batch import TokenBatch
from parallel.mesh import Axis, ParallelMesh
from parallel.vocab import vocabulary_parallel_argmax
from pretrain.config.run import RunConfig
from pretrain.engine import evaluator
from pretrain.engine.build import model_parts
from pretrain.engine.evaluator import Evaluation
from pretrain.engine.targets import BatchesMissing
from pretrain.evaluation.validate import Validation, validate
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.tasks.next_token import Perplexity
from pretrain.tasks.task import Metric

LAYOUTS = [
    Layout(accumulation=3),
    Layout(tensor=2),
    Layout(pipeline=2, accumulation=3),
    Layout(data=2),
    Layout(tensor=2, pipeline=2, accumulation=2),
]


class TokenAccuracy(Metric):
    """The share of targets that the model holds for the likeliest token."""

    name = "accuracy"

    def __init__(self, tensor: Axis) -> None:
        self._tensor = tensor

    def sums(self, outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        targets_BS, weights_BS = labels
        right_BS = vocabulary_parallel_argmax(outputs, self._tensor) == targets_BS
        return torch.stack([(right_BS * weights_BS).sum(), weights_BS.sum()]).double()

    def value(self, sums: Sequence[float], loss: float) -> float:
        right, all_of_them = sums
        return right / all_of_them


class Samples(Metric):
    """The number of samples: one sum, so that metrics have sums of different numbers."""

    name = "samples"

    def sums(self, outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        return torch.tensor([float(len(labels[0]))], dtype=torch.float64)

    def value(self, sums: Sequence[float], loss: float) -> float:
        return sums[0]


def guessable(config: RunConfig, mesh: ParallelMesh, step: int) -> list[TokenBatch]:
    """Batches half of whose targets are the token itself, which is what a tied model tends to predict at first."""
    return [
        replace(batch, targets_BS=torch.where(batch.targets_BS % 2 == 0, batch.tokens_BS, batch.targets_BS))
        for batch in make_batches(config, mesh, step)
    ]


# Without an optimizer


def both_ways(layout: Layout, model: dict[str, Any]) -> tuple[list[Evaluation], list[Evaluation]]:
    """Two evaluations each, by a TrainEngine and without one."""
    config = make_config(layout, **model)
    mesh = make_mesh(config.parallel)
    engine, alone = make_engine(config, mesh), make_evaluator(config, mesh)
    steps = [make_batches(config, mesh, step) for step in (1, 2)]
    return [engine.evaluate(step) for step in steps], [alone.evaluate(step) for step in steps]


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        *((layout, {"dropout": 0.1}) for layout in LAYOUTS),
        (Layout(data=2, zero=2), {}),
        (Layout(tensor=2), {"reparametrization": "sigma"}),
        (Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), {"reparametrization": "sigma"}),
        slow(Layout(data=2, zero=3), {}),
        slow(Layout(dtype="bf16", data=2), {}),
    ],
    ids=str,
)
def test_without_an_optimizer_it_comes_to_the_same(layout: Layout, model: dict[str, Any]) -> None:
    for ours, alone in run_distributed(both_ways, layout.world_size, layout, model):
        assert ours == alone
        assert ours[0] != ours[1]
        assert all(math.isfinite(part.loss) and part.targets > 0 for part in ours)


# Metrics


def validated(layout: Layout) -> tuple[Validation, list[Evaluation]]:
    """Two steps validated with three metrics; their evaluations one by one."""
    config = make_config(layout)
    mesh = make_mesh(config.parallel)
    metrics = (Samples(), Perplexity(), TokenAccuracy(mesh.tensor))
    parts = replace(model_parts(config, mesh, detect_kernels()), metrics=metrics)
    settings = plan(config, mesh.world_size).deepspeed
    alone = evaluator.make_evaluator(parts, mesh, settings)
    steps = [guessable(config, mesh, step) for step in (1, 2)]
    whole = validate(alone, steps, lambda: False)
    assert whole is not None
    assert validate(alone, steps, lambda: True) is None
    return whole, [alone.evaluate(step) for step in steps]


@lru_cache
def by_one_rank() -> Validation:
    ((whole, _),) = run_distributed(validated, 1, Layout())
    return whole


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_metrics_are_the_same_numbers_in_every_layout(layout: Layout) -> None:
    expected = by_one_rank()
    assert expected.metrics["samples"] == 24
    assert 0.3 < expected.metrics["accuracy"] < 0.6
    assert expected.metrics["perplexity"] == math.exp(expected.loss)
    for whole, parts in run_distributed(validated, layout.world_size, layout):
        assert list(whole.metrics) == ["samples", "perplexity", "accuracy"]
        assert whole.metrics["samples"] == 24
        assert whole.metrics["accuracy"] == expected.metrics["accuracy"]
        assert whole.loss == pytest.approx(expected.loss, rel=1e-5)
        assert whole.targets == expected.targets
        # The metrics see the weights of the data, not those that the loss was scaled by.
        assert [part.sums[2] for part in parts] == [part.targets for part in parts]


def test_perplexity_of_a_loss_that_has_none() -> None:
    assert Perplexity().value((), 1.5) == math.exp(1.5)
    assert math.isinf(Perplexity().value((), 1e300))
    assert math.isnan(Perplexity().value((), math.nan))


# What goes wrong


def without_batches(rank: int) -> str:
    config = make_config(Layout(data=2))
    mesh = make_mesh(config.parallel)
    alone = make_evaluator(config, mesh)
    batches = [] if mesh.rank == rank else make_batches(config, mesh, 1)
    with pytest.raises(BatchesMissing):
        alone.evaluate(batches)
    masked = [replace(batch, weights_BS=batch.weights_BS * 0) for batch in make_batches(config, mesh, 1)]
    with pytest.raises(DataError, match="no target of the validation set counts"):
        validate(alone, [masked], lambda: False)
    (batch,) = make_batches(config, mesh, 1)
    found = validate(alone, [[replace(batch, damaged=(f"of rank {mesh.rank}", "of all"))]], lambda: False)
    assert found is not None
    assert list(found.damaged) == ["of all", "of rank 0", "of rank 1"]
    return "raised"


def test_missing_batches_stop_all_ranks_and_masked_ones_are_no_result() -> None:
    assert run_distributed(without_batches, 2, 1) == ["raised"] * 2
