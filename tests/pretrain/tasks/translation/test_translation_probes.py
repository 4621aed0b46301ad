"""Probes of an encoder-decoder that translates: its tables, three kinds of attention, the same in every layout."""

from functools import lru_cache
from typing import Any

import pytest
from support.distributed import run_distributed
from support.training import Layout, make_engine, make_mesh, proceed, slow
from support.translation import TARGET, translation_batches, translation_config

from pretrain.config.run import ProbesConfig
from pretrain.step import StepReport

STEPS = 4
PROBES = {"every_steps": 2, "attention_entropy_rows": "all", "tev_head": True}
MODELS: dict[str, dict[str, Any]] = {
    "joint": {"reparametrization": "sigma", "norm_placement": "deepnorm"},
    "half_shared": {"embeddings": "half_shared", "target_vocabulary_size": TARGET},
}
LAYOUTS = [
    (Layout(tensor=2, pipeline=2, accumulation=6), "joint"),
    (Layout(pipeline=2, accumulation=6), "half_shared"),
    slow(Layout(pipeline=2, data=2, accumulation=3, zero=1), "joint"),
    slow(Layout(data=2, accumulation=3, zero=2), "half_shared"),
]


def train(layout: Layout, model: dict[str, Any]) -> list[StepReport]:
    config = translation_config(layout, model).model_copy(update={"probes": ProbesConfig(**PROBES)})
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    return [
        engine.step(translation_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)[0]
        for step in range(1, STEPS + 1)
    ]


@lru_cache
def alone(model: str) -> list[StepReport]:
    (reports,) = run_distributed(train, 1, Layout(accumulation=6), MODELS[model])
    return reports


@pytest.mark.parametrize(("layout", "model"), LAYOUTS, ids=str)
def test_layouts_measure_the_same(layout: Layout, model: str) -> None:
    every_rank = run_distributed(train, layout.world_size, layout, MODELS[model])
    assert all(reports == every_rank[0] for reports in every_rank), "ranks report different numbers"
    for ours, theirs in zip(every_rank[0], alone(model), strict=True):
        assert ours.measures.get("replicas_differ", 0) == 0
        for name, value in theirs.measures.items():
            near = 2e-4 if name.endswith("reach") else 5e-5  # which allows for rounding
            assert ours.measures[name] == pytest.approx(value, rel=near, abs=1e-9), name


def test_what_is_measured() -> None:
    """Two blocks a side: self-attention of either, and cross-attention; every table once."""
    joint, half_shared = (alone(model)[1].measures for model in MODELS)
    entropies = {f"{side}_0{n}" for side in ("encoder", "decoder") for n in (0, 1)}
    entropies |= {f"decoder_0{n}/cross" for n in (0, 1)}
    for measures in (joint, half_shared):
        named = {name.partition("/")[2] for name in measures if name.startswith("attention_entropy_mean/")}
        assert named == entropies
        assert measures["attention_entropy_slack_min"] > -1e-12
    assert {name for name in joint if name.endswith("_mean") and name.startswith("tev")} == {"tev_mean"}
    tables = {name for name in half_shared if name.endswith("_mean") and name.startswith("tev")}
    assert tables == {"tev_mean", "tev_target_mean"}
    assert "sigma/decoder_01/cross_attention.query.linear" in joint
