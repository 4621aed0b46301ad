"""Compiled blocks compute what uncompiled ones do; one graph serves all that are alike, and every bucket."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.courses import Batches
from support.distributed import run_distributed
from support.forecasting_model import forecasting_batches, forecasting_config
from support.speech_model import speech_batches, speech_config
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed
from support.translation import translation_batches, translation_config
from torch._dynamo.utils import counters

from pretrain.config.run import RunConfig
from pretrain.models.compiler import Compiler

STEPS = 30
"""Probes look at every tenth step, whose first micro-batch runs uncompiled on the ranks that look."""
Course = list[tuple[float, float]]
"""Loss of each step, and the attention entropy where probes look, else 0."""


def gpt_config(layout: Layout, model: dict[str, Any]) -> RunConfig:
    return make_config(layout, **model)


LLAMA = {
    "activation": "swiglu",
    "normalization": "rms_norm",
    "bias": False,
    "attention": {"num_key_value_heads": 2},
}
SIGMA = {"reparametrization": "sigma"}
MLRA = {"attention": {"kind": "mlra", "down_projection": "sharded"}}
KINDS: dict[str, tuple[Callable[[Layout, dict[str, Any]], RunConfig], Batches]] = {
    "gpt": (gpt_config, make_batches),
    "translation": (translation_config, translation_batches),
    "speech": (speech_config, speech_batches),
    "forecasting": (forecasting_config, forecasting_batches),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt", {"positions": "learned"}),
    "llama": ("gpt", LLAMA),
    "sigma": ("gpt", {**SIGMA, "dropout": 0.1, "layer_drop": 0.2}),
    "mlra": ("gpt", {**MLRA, **SIGMA}),
    "translation": ("translation", {"norm_placement": "deepnorm", "dropout": 0.1, "decoder_layers": 3}),
    "speech": ("speech", {"positions": "cape", "dropout": 0.1}),
    "samformer": ("forecasting", {**SIGMA, "dropout": 0.1}),
    "frozen": ("forecasting", {"frozen_attention": True}),
    "temporal": ("forecasting", {"kind": "temporal"}),
    "tsmixer": ("forecasting", {"kind": "tsmixer", "dropout": 0.3}),
}


def course(
    layout: Layout, name: str, backend: str | None, steps: int = STEPS, **changes: Any
) -> tuple[Course, list[int]]:
    """It trains, compiled if there is a backend; returns losses, and how many graphs there were after each step."""
    torch._dynamo.reset()
    counters.clear()
    (configure, batches), model = KINDS[MODELS[name][0]], MODELS[name][1]
    config = configure(layout, {**model, **changes, "compile": backend is not None})
    with patch("pretrain.engine.build.Compiler", partial(Compiler, backend)):
        engine = make_engine(config, mesh := make_mesh(config.parallel))
    trial, found, graphs = counters["stats"]["unique_graphs"], [], []
    # What cannot be compiled runs as it is, and says so.
    warnings.filterwarnings("error", message="model.compile")
    for step in range(1, steps + 1):
        report, _ = engine.step(batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)
        found.append((report.loss, report.measures.get("attention_entropy_mean", 0.0)))
        graphs.append(counters["stats"]["unique_graphs"] - trial)
    return found, graphs


def check(layout: Layout, name: str, backend: str, bound: float, steps: int = STEPS) -> None:
    plain, _ = run_distributed(course, layout.world_size, layout, name, None, steps)[0]
    for compiled, graphs in run_distributed(
        course, layout.world_size, layout, name, backend, steps, timeout=600
    ):
        stacks = 2 if name == "translation" else 1
        assert 1 <= graphs[2] <= stacks
        assert graphs[-1] == graphs[2], f"graphs after each step: {graphs}"
        for ours, theirs in zip(compiled, plain, strict=True):
            assert ours == pytest.approx(theirs, rel=bound)


def test_a_compiled_gpt_trains_as_another() -> None:
    """Masks of dropout, What, micro-batches that probes look at, recomputation: all go through the same graph."""
    check(Layout(accumulation=3, checkpointing=True), "sigma", "aot_eager", 1e-6, steps=11)


def test_shapes_of_buckets_share_a_graph() -> None:
    check(Layout(accumulation=6), "translation", "aot_eager", 1e-6, steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_losses_of_30_steps_agree(name: str) -> None:
    check(Layout(accumulation=3), name, "inductor", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (Layout(tensor=2, accumulation=3, checkpointing=True), "mlra"),
        (Layout(tensor=2, data=2, zero=3, accumulation=3), "llama"),
        (Layout(data=2, zero=3, accumulation=3, checkpointing=True), "gpt2"),
        (Layout(data=2, zero=2, accumulation=3), "sigma"),
        (Layout(pipeline=2, data=2, zero=1, accumulation=3), "gpt2"),
        (Layout(tensor=2, pipeline=2, accumulation=6, checkpointing=True), "translation"),
        (Layout(tensor=2, accumulation=3), "samformer"),
        (Layout(data=2, zero=0, accumulation=3), "speech"),
    ],
    ids=lambda part: str(part),
)
def test_every_layout_compiles(layout: Layout, name: str) -> None:
    check(layout, name, "aot_eager", 1e-5, steps=11)
