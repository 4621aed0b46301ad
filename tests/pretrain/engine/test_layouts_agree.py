"""Every layout computes what one process computes: losses, gradient norms and validation losses of 20 steps.

The bound for fp32 is 1e-5 relative, on every step; bf16 rounds differently in every layout, and its bound (3 % on
the gradient norm, 0.2 % on the loss) is what one process in bf16 keeps to fp32, with a margin.
"""

from functools import lru_cache

import pytest
from support.courses import Losses, largest_difference, train
from support.distributed import run_distributed
from support.training import Layout, slow

FP32 = [
    Layout(accumulation=3),
    Layout(checkpointing=True),
    Layout(zero=3, accumulation=3),
    slow(Layout(tensor=2)),
    Layout(tensor=2, accumulation=3, checkpointing=True),
    slow(Layout(pipeline=2)),
    Layout(pipeline=2, accumulation=3, checkpointing=True),
    *(Layout(data=2, zero=stage) for stage in range(4)),
    *(slow(Layout(data=2, zero=stage, accumulation=3, checkpointing=True)) for stage in range(3)),
    Layout(data=2, zero=3, accumulation=3, checkpointing=True),
    slow(Layout(tensor=2, pipeline=2)),
    Layout(tensor=2, pipeline=2, accumulation=3, checkpointing=True),
    Layout(tensor=2, data=2, zero=1),
    slow(Layout(tensor=2, data=2, zero=3, accumulation=3)),
    slow(Layout(pipeline=2, data=2, zero=1)),
    Layout(pipeline=2, data=2, zero=1, accumulation=3, checkpointing=True),
    slow(Layout(pipeline=2, data=2, zero=0, accumulation=3)),
]
BF16 = [
    *(Layout(dtype="bf16", zero=stage) for stage in range(4)),
    *(Layout(dtype="bf16", data=2, zero=stage, accumulation=3) for stage in (1, 3)),
    *(slow(Layout(dtype="bf16", data=2, zero=stage, accumulation=3)) for stage in (0, 2)),
    Layout(dtype="bf16", tensor=2, accumulation=3, checkpointing=True),
    Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3),
    Layout(dtype="bf16", tensor=2, pipeline=2, zero=1, accumulation=3),
]
MODELS = {
    "gpt2": {"positions": "learned"},
    "llama": {
        "activation": "swiglu",
        "normalization": "rms_norm",
        "bias": False,
        "tied_embeddings": False,
        "attention": {"num_key_value_heads": 2},
    },
}


@lru_cache
def alone(name: str) -> Losses:
    (course,) = run_distributed(train, 1, Layout(), MODELS[name])
    return course


def check(layout: Layout, model: str, loss_bound: float, norm_bound: float) -> None:
    courses = run_distributed(train, layout.world_size, layout, MODELS[model])
    assert all(course == courses[0] for course in courses), "ranks report different numbers"
    assert largest_difference(courses[0], alone(model), 0) <= loss_bound
    assert largest_difference(courses[0], alone(model), 1) <= norm_bound


@pytest.mark.parametrize("layout", FP32, ids=str)
def test_fp32(layout: Layout) -> None:
    check(layout, "gpt2", 1e-5, 1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(tensor=2, accumulation=3, checkpointing=True),
        Layout(data=2, zero=3),
        Layout(tensor=2, pipeline=2, accumulation=3),
        Layout(pipeline=2, data=2, zero=1, accumulation=3),
    ],
    ids=str,
)
def test_another_model(layout: Layout) -> None:
    """SwiGLU, RMSNorm, no biases, an untied head, grouped keys and values."""
    check(layout, "llama", 1e-5, 1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_partitions_that_need_padding(stage: int) -> None:
    model = {"num_layers": 1, "ffn_hidden_size": 33}
    (reference,) = run_distributed(train, 1, Layout(), model)
    course = run_distributed(train, 2, Layout(data=2, zero=stage), model)[0]
    assert largest_difference(course, reference, 1) <= 1e-5


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16(layout: Layout) -> None:
    check(layout, "llama", 2e-3, 3e-2)


def dropout_course(layout: Layout) -> Losses:
    return train(layout, {"dropout": 0.2, "attention": {"dropout": 0.2}})


def test_dropout_does_not_depend_on_stages_or_recomputation() -> None:
    (reference,) = run_distributed(dropout_course, 1, Layout(accumulation=3))
    (without,) = run_distributed(train, 1, Layout(accumulation=3), {})
    assert largest_difference(without, reference, 0) > 1e-4
    for layout in (
        Layout(accumulation=3, checkpointing=True),
        Layout(pipeline=2, accumulation=3, checkpointing=True),
    ):
        course = run_distributed(dropout_course, layout.world_size, layout)[0]
        assert largest_difference(course, reference, 0) <= 1e-5


def test_dropout_of_what_tensor_ranks_share_is_the_same_on_both() -> None:
    model = {"dropout": 0.2}
    (reference,) = run_distributed(train, 1, Layout(), model)
    course = run_distributed(train, 2, Layout(tensor=2), model)[0]
    assert largest_difference(course, reference, 0) <= 1e-5
