"""Layouts of models that forecast train and validate alike."""

from functools import lru_cache
from typing import Any

import pytest
from support.courses import Losses, course_of, largest_difference
from support.distributed import run_distributed
from support.forecasting_model import forecasting_batches, forecasting_config
from support.training import Layout, slow

STEPS = 8
MODELS: dict[str, dict[str, Any]] = {
    "paper": {},
    "deep": {"norm_placement": "pre", "reparametrization": "sigma", "init": "glorot", "dropout": 0.1},
    "frozen": {"frozen_attention": True, "instance_norm": False},
    "temporal": {"kind": "temporal"},
    "tsmixer": {"kind": "tsmixer", "share_layers": False, "dropout": 0.2},
    "shared": {"kind": "tsmixer"},
    "dlinear": {"kind": "dlinear"},
}

LAYOUTS = [
    (Layout(tensor=2, accumulation=2), "paper"),
    (Layout(pipeline=2, accumulation=4), "paper"),
    (Layout(data=2, zero=1), "deep"),
    slow(Layout(tensor=2, pipeline=2, accumulation=2, checkpointing=True), "paper"),
    slow(Layout(tensor=2, data=2, zero=1, checkpointing=True), "deep"),
    slow(Layout(data=2, zero=3, accumulation=2), "paper"),
    slow(Layout(data=2, zero=2), "frozen"),
    slow(Layout(pipeline=2, accumulation=2), "frozen"),
    slow(Layout(tensor=2, pipeline=2, accumulation=2), "temporal"),
    slow(Layout(pipeline=4, accumulation=4, checkpointing=True), "tsmixer"),
    slow(Layout(data=2, zero=1), "shared"),
    slow(Layout(data=2, zero=2), "dlinear"),
]


def train(layout: Layout, model: dict[str, Any]) -> Losses:
    return course_of(forecasting_config(layout, model), forecasting_batches, STEPS)


@lru_cache
def alone(model: str, accumulation: int, data: int) -> Losses:
    """Dropout goes by micro-batches and data ranks, of which there are as many here as in the layout."""
    chance = MODELS[model].get("dropout")
    layout = Layout(accumulation=accumulation, data=data) if chance else Layout()
    return run_distributed(train, layout.world_size, layout, MODELS[model])[0]


@pytest.mark.parametrize(("layout", "model"), LAYOUTS, ids=str)
def test_fp32(layout: Layout, model: str) -> None:
    courses = run_distributed(train, layout.world_size, layout, MODELS[model])
    assert all(course == courses[0] for course in courses), "ranks report different numbers"
    reference = alone(model, layout.accumulation, layout.data)
    assert largest_difference(courses[0], reference, 0) <= 1e-5
    assert largest_difference(courses[0], reference, 1) <= 1e-5
    assert reference[STEPS - 1][0] < reference[0][0]


@pytest.mark.parametrize(
    "layout", [Layout(dtype="bf16", pipeline=2, zero=1, accumulation=4), slow(Layout(dtype="bf16", tensor=2))]
)
def test_bf16(layout: Layout) -> None:
    course = run_distributed(train, layout.world_size, layout, MODELS["paper"])[0]
    assert largest_difference(course, alone("paper", 1, 1), 0) <= 2e-2
