"""The configurations for deep models are sound on their stated ranks, comparable with each other, and trainable."""

import re
import shlex
import tomllib
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from support.courses import Losses, largest_difference
from support.distributed import run_distributed
from support.training import VOCABULARY, make_batches, make_engine, make_mesh, proceed

from pretrain.config.loader import dump_config, load_config
from pretrain.config.run import RunConfig
from pretrain.plan.plan import plan

ROOT = Path(__file__).parents[3]
DEEP = ROOT / "configs" / "gpt" / "deep"
ARMS = ("pre-ln", "post-ln", "sigma", "mlra", "mlra-matched", "mlra-sigma")
DEPTHS = (24, 48)
CLUSTERS = {"1.3b-one-host": 8, "1.3b-many-hosts": 32, "6.7b-one-host": 8, "6.7b-many-hosts": 64}
RANKS = {**{f"{depth}-{arm}": 1 for depth in DEPTHS for arm in ARMS}, **CLUSTERS}
"""It maps a run to its number of ranks. An arm is one file, whose header has a command for each depth."""
METHOD_KEYS = {"attention", "norm_placement", "reparametrization", "gamma_init"}
"""The arms of a comparison may differ in these keys of [model]."""


def header_of(stem: str) -> str:
    """It returns the comment that a file opens with, without its signs and with broken lines joined."""
    text = (DEEP / f"{stem}.toml").read_text().partition("[run]")[0]
    return re.sub(r"^# ?", "", text, flags=re.MULTILINE).replace("\\\n", " ")


def documented_command(name: str) -> list[str]:
    """It returns the words of the command in the header of a file that starts the run `name`."""
    depth, _, arm = name.partition("-")
    stem, number = (name, 0) if name in CLUSTERS else (arm, DEPTHS.index(int(depth)))
    lines = [line.partition("surefoot train ") for line in header_of(stem).splitlines()]
    words = [shlex.split(after) for _, found, after in lines if found][number]
    assert words[0] == f"configs/gpt/deep/{stem}.toml"
    return words


def load(name: str) -> RunConfig:
    """It loads a run as its documented command does."""
    words = documented_command(name)
    return load_config(ROOT / words[0], [after for word, after in pairwise(words) if word == "--set"])


def test_every_file_is_listed() -> None:
    assert {path.stem for path in DEEP.glob("*.toml")} == {*ARMS, *CLUSTERS}


@pytest.mark.parametrize(("name", "world_size"), RANKS.items())
def test_works_on_its_stated_ranks(name: str, world_size: int) -> None:
    config = load(name)
    planned = plan(config, world_size)
    header = header_of(name if name in CLUSTERS else name.partition("-")[2])
    assert config.run.name == f"deep-{name}"
    assert planned.warnings == ()
    assert f"{planned.batch.tokens:,} a step; {planned.steps:,} steps" in header
    if name in CLUSTERS:
        assert f"pipeline {planned.pipeline} x data {planned.data} = {world_size} ranks" in header
        assert planned.parameters.total == pytest.approx(float(name[:3]) * 1e9, rel=0.1)
    else:
        assert config.model.num_layers == int(name.partition("-")[0])


@pytest.mark.parametrize("depth", DEPTHS)
def test_arms_differ_in_the_method_alone(depth: int) -> None:
    runs = {arm: load(f"{depth}-{arm}").model_dump() for arm in ARMS}
    attention = {arm: plan(load(f"{depth}-{arm}"), 1).parameters.parts["attention"] for arm in ARMS}
    assert len(set(attention.values())) == 1, attention
    for run in runs.values():
        run["run"].pop("name")
        for key in METHOD_KEYS:
            run["model"].pop(key)
    assert all(run == runs["pre-ln"] for run in runs.values())
    assert len({load(f"{depth}-{arm}").model.model_dump_json() for arm in ARMS}) == len(ARMS)


# Each layout with as many of its ranks as fit on this machine: at most two axes of size 2.
SCALED = {
    "1.3b-one-host": {"tensor": 2, "pipeline": 2},  # of 2 x 2 x 2: data 1 instead of 2
    "1.3b-many-hosts": {"tensor": 1, "pipeline": 2},  # of 2 x 4 x 4: tensor 1, pipeline 2, data 2
    "6.7b-one-host": {"tensor": 2, "pipeline": 2},  # of 4 x 2 x 1: tensor 2
    "6.7b-many-hosts": {"tensor": 2, "pipeline": 1},  # of 4 x 4 x 4: tensor 2, pipeline 1, data 2
}
WORLD_SIZE = 4


def tiny(name: str, folder: Path, **parallel: int) -> RunConfig:
    """It returns the configuration with small dimensions: everything that is not a size stays."""
    document: dict[str, Any] = tomllib.loads(dump_config(load(name)))
    document["run"].update(steps=100)
    document["schedule"].update(warmup_steps=10)
    document["model"].update(num_layers=4, hidden_size=32, vocabulary_size=VOCABULARY)
    document["model"]["attention"].update(num_heads=4)
    document["parallel"].update(parallel, timeout_seconds=60, control_timeout_seconds=60)
    document["data"].update(sequence_length=32, micro_batch_size=2, global_batch_size=8)
    path = folder / "tiny.toml"
    path.write_text(tomli_w.dumps(document))
    return load_config(path)


def train(config: RunConfig) -> Losses:
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    reports = [
        engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)[0]
        for step in range(1, 5)
    ]
    return [(report.loss, report.gradient_norm) for report in reports]


@lru_cache
def alone(config: RunConfig) -> Losses:
    (course,) = run_distributed(train, 1, config)
    return course


@pytest.mark.parametrize(
    "name",
    [
        "1.3b-one-host",
        "6.7b-many-hosts",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("1.3b-many-hosts", "6.7b-one-host")),
    ],
)
def test_tiny_cluster_trains_as_one_process_does(name: str, tmp_path: Path) -> None:
    courses = run_distributed(train, WORLD_SIZE, tiny(name, tmp_path, **SCALED[name]))
    assert all(course == courses[0] for course in courses), "ranks report different numbers"
    reference = alone(tiny(name, tmp_path, tensor=1, pipeline=1))
    assert largest_difference(courses[0], reference, 0) <= 2e-3  # bf16, as in the configurations
    assert largest_difference(courses[0], reference, 1) <= 3e-2
