"""Layouts of an encoder-decoder train and validate alike; micro-batches of a step have several shapes."""

from functools import lru_cache
from typing import Any

import pytest
from support.courses import Losses, course_of, largest_difference
from support.distributed import run_distributed
from support.training import Layout, slow
from support.translation import TARGET, translation_batches, translation_config

STEPS = 8
MODELS: dict[str, dict[str, Any]] = {
    "post": {
        "norm_placement": "post",
        "positions": "sinusoidal",
        "attention": {"num_key_value_heads": 2},
    },
    "deepnorm": {
        "norm_placement": "deepnorm",
        "encoder_layers": 3,
        "decoder_layers": 3,
        "activation": "swiglu",
    },
    "pre_separate": {"embeddings": "separate", "target_vocabulary_size": TARGET, "bias": False},
    "mlra_half_shared": {
        "attention": {"kind": "mlra", "rank": 12},
        "embeddings": "half_shared",
        "target_vocabulary_size": TARGET,
    },
    "sigma": {"norm_placement": "post", "reparametrization": "sigma"},
}

# Twelve pairs: with six micro-batches two in each.
LAYOUTS = [
    (Layout(tensor=2, accumulation=6, checkpointing=True), "deepnorm"),
    slow(Layout(pipeline=2, accumulation=6), "post"),
    slow(Layout(pipeline=2, accumulation=6), "deepnorm"),
    (Layout(data=2, zero=1, accumulation=3), "post"),
    (Layout(data=2, zero=3, accumulation=3), "mlra_half_shared"),
    (Layout(tensor=2, pipeline=2, accumulation=6, checkpointing=True), "post"),
    slow(Layout(pipeline=4, accumulation=6), "deepnorm"),
    slow(Layout(data=2, zero=0), "post"),
    slow(Layout(data=2, zero=2, accumulation=3, checkpointing=True), "deepnorm"),
    slow(Layout(tensor=2, accumulation=6), "mlra_half_shared"),
    slow(Layout(tensor=2, accumulation=6), "sigma"),
    slow(Layout(pipeline=2, data=2, zero=1, accumulation=3), "sigma"),
    slow(Layout(pipeline=2), "post"),
    slow(Layout(pipeline=2, data=2, zero=1, accumulation=3), "pre_separate"),
    slow(Layout(tensor=2, pipeline=2, accumulation=6), "mlra_half_shared"),
    slow(Layout(tensor=2, data=2, zero=3, accumulation=3), "pre_separate"),
]


def train(layout: Layout, model: dict[str, Any]) -> Losses:
    return course_of(translation_config(layout, model), translation_batches, STEPS)


@lru_cache
def alone(model: str) -> Losses:
    (course,) = run_distributed(train, 1, Layout(), MODELS[model])
    return course


@pytest.mark.parametrize(("layout", "model"), LAYOUTS, ids=str)
def test_fp32(layout: Layout, model: str) -> None:
    courses = run_distributed(train, layout.world_size, layout, MODELS[model])
    assert all(course == courses[0] for course in courses), "ranks report different numbers"
    assert largest_difference(courses[0], alone(model), 0) <= 1e-5
    assert largest_difference(courses[0], alone(model), 1) <= 1e-5


BF16 = [
    Layout(dtype="bf16", pipeline=2, zero=1, accumulation=6),
    slow(Layout(dtype="bf16", tensor=2, data=2, zero=1, accumulation=3)),
    slow(Layout(dtype="bf16", data=2, zero=3, accumulation=3)),
]


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16(layout: Layout) -> None:
    course = run_distributed(train, layout.world_size, layout, MODELS["deepnorm"])[0]
    assert largest_difference(course, alone("deepnorm"), 0) <= 2e-3
    assert largest_difference(course, alone("deepnorm"), 1) <= 3e-2


def test_dropout_does_not_depend_on_stages_or_recomputation() -> None:
    model = {"dropout": 0.2, "attention": {"dropout": 0.2}}
    (reference,) = run_distributed(train, 1, Layout(accumulation=6), model)
    layout = Layout(pipeline=2, accumulation=6, checkpointing=True)
    assert largest_difference(run_distributed(train, 2, layout, model)[0], reference, 0) <= 1e-5


def losses(share: float) -> tuple[float, float]:
    course = course_of(translation_config(Layout(), {"label_smoothing": share}), translation_batches, 1)
    return course[0][0], course[-1][0]


def test_validation_reports_the_loss_without_smoothing() -> None:
    """The first step is of equal weights, so only what it minimises differs."""
    (plain,), (smoothed,) = (run_distributed(losses, 1, share) for share in (0.0, 0.4))
    assert smoothed[0] != plain[0]
    assert smoothed[1] == pytest.approx(plain[1], rel=1e-3)
