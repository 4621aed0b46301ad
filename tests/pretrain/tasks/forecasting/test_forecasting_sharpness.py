"""Sharpness-aware steps of models that forecast equal the plain method, and are the same in every layout."""

from typing import Any

import pytest
from support.courses import Losses, largest_difference
from support.distributed import run_distributed
from support.forecasting_model import forecasting_batches, forecasting_config
from support.plain_sam import against_the_plain_method, sharpness_aware_course, with_sam
from support.training import Layout, slow

from pretrain.config.run import RunConfig
from pretrain.optim.config import AdamWConfig, OptimizerConfig, SGDConfig, SharpnessAwareConfig

SAM, ASAM = SharpnessAwareConfig(rho=0.7), SharpnessAwareConfig(rho=0.5, adaptive=True)
SGD = SGDConfig(learning_rate=0.05, gradient_clipping=0.5)
ADAMW = AdamWConfig(learning_rate=1e-3, gradient_clipping=0.5)
SIGMA = {"reparametrization": "sigma", "norm_placement": "pre"}
TSMIXER = {"kind": "tsmixer", "share_layers": False}
TEMPORAL = {"kind": "temporal"}


def config_of(
    layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig, sam: SharpnessAwareConfig
) -> RunConfig:
    return with_sam(forecasting_config(layout, model), optimizer, sam)


@pytest.mark.parametrize(
    ("model", "optimizer", "sam"),
    [
        ({}, ADAMW, SAM),
        slow({}, SGD, ASAM),
        slow(SIGMA, SGD, SAM),
        slow({"frozen_attention": True, "instance_norm": False}, ADAMW, SAM),
        slow(TSMIXER, SGD, SAM),
        slow(TEMPORAL, ADAMW, ASAM),
        slow({"kind": "dlinear"}, SGD, SAM),
    ],
    ids=str,
)
def test_it_is_the_plain_method_in_float64(
    model: dict[str, Any], optimizer: OptimizerConfig, sam: SharpnessAwareConfig
) -> None:
    config = config_of(Layout(accumulation=2), model, optimizer, sam)
    assert max(run_distributed(against_the_plain_method, 1, config, forecasting_batches)[0]) <= 1e-10


def course(
    layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig, sam: SharpnessAwareConfig
) -> Losses:
    return sharpness_aware_course(config_of(layout, model, optimizer, sam), forecasting_batches)


@pytest.mark.parametrize(
    ("layout", "model", "optimizer", "sam"),
    [
        (Layout(tensor=2), {}, ADAMW, SAM),
        slow(Layout(tensor=2), {}, SGD, SAM),
        slow(Layout(pipeline=2, accumulation=2), {}, ADAMW, ASAM),
        slow(Layout(pipeline=2, accumulation=2), {}, SGD, SAM),
        slow(Layout(data=2, zero=1), {}, ADAMW, SAM),
        slow(Layout(data=2, zero=2), SIGMA, SGD, SAM),
        slow(Layout(tensor=2, data=2, zero=1), SIGMA, ADAMW, SAM),
        slow(Layout(tensor=2, pipeline=2, accumulation=2), TEMPORAL, ADAMW, SAM),
        slow(Layout(pipeline=2, data=2, zero=1, accumulation=2), TSMIXER, SGD, SAM),
        slow(Layout(data=2, zero=2), {"kind": "dlinear"}, SGD, ASAM),
    ],
    ids=str,
)
def test_layouts_agree(
    layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig, sam: SharpnessAwareConfig
) -> None:
    (reference,) = run_distributed(course, 1, Layout(), model, optimizer, sam)
    courses = run_distributed(course, layout.world_size, layout, model, optimizer, sam)
    assert all(own == courses[0] for own in courses), "ranks report different numbers"
    assert largest_difference(courses[0], reference, 0) <= 1e-5
    assert largest_difference(courses[0], reference, 1) <= 1e-5
