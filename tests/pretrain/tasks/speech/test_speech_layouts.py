"""Layouts of an encoder of speech train and validate alike; micro-batches of a step have several shapes."""

from functools import lru_cache
from typing import Any

import pytest
from support.courses import Losses, course_of, largest_difference
from support.distributed import run_distributed
from support.speech_model import speech_batches, speech_config
from support.training import Layout, slow

STEPS = 8
MODELS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"norm_placement": "post", "positions": "sinusoidal", "attention": {"num_key_value_heads": 2}},
    "none_sigma": {"norm_placement": "none", "reparametrization": "sigma", "bias": False},
    "mlra": {"attention": {"kind": "mlra", "rank": 12}, "activation": "swiglu", "positions": "learned"},
}

# Twelve utterances: with six micro-batches two in each.
LAYOUTS = [
    (Layout(tensor=2, accumulation=6, checkpointing=True), "none_sigma"),
    (Layout(pipeline=2, accumulation=6), "post"),
    (Layout(data=2, zero=1, accumulation=3), "pre"),
    (Layout(tensor=2, pipeline=2, accumulation=6), "mlra"),
    slow(Layout(data=2, zero=0), "post"),
    slow(Layout(data=2, zero=2, accumulation=3, checkpointing=True), "mlra"),
    slow(Layout(data=2, zero=3, accumulation=3), "pre"),
    slow(Layout(pipeline=4, accumulation=6), "pre"),
    slow(Layout(tensor=2, pipeline=2, accumulation=6, checkpointing=True), "none_sigma"),
    slow(Layout(pipeline=2, data=2, zero=1, accumulation=3), "none_sigma"),
    slow(Layout(tensor=2, data=2, zero=1, accumulation=3), "post"),
]


def train(layout: Layout, model: dict[str, Any]) -> Losses:
    return course_of(speech_config(layout, model), speech_batches, STEPS)


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
]


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16(layout: Layout) -> None:
    course = run_distributed(train, layout.world_size, layout, MODELS["pre"])[0]
    assert largest_difference(course, alone("pre"), 0) <= 5e-3
    assert largest_difference(course, alone("pre"), 1) <= 5e-2


CHANCE = {
    "dropout": 0.2,
    "layer_drop": 0.3,
    "positions": "cape",
    "cape": {"global_scale": 1.1},
    "attention": {"dropout": 0.2},
}


def test_what_is_left_to_chance_does_not_depend_on_stages_or_recomputation() -> None:
    (reference,) = run_distributed(train, 1, Layout(accumulation=6), CHANCE)
    layout = Layout(pipeline=2, accumulation=6, checkpointing=True)
    assert largest_difference(run_distributed(train, 2, layout, CHANCE)[0], reference, 0) <= 1e-5


def test_tensor_ranks_leave_out_the_same_blocks_and_move_positions_alike() -> None:
    """Attention's own dropout differs between ranks, as their heads do, so it is left out here."""
    model = {"layer_drop": 0.3, "positions": "cape", "dropout": 0.2}
    (reference,) = run_distributed(train, 1, Layout(accumulation=6), model)
    course = run_distributed(train, 2, Layout(tensor=2, accumulation=6), model)[0]
    assert largest_difference(course, reference, 0) <= 1e-5
