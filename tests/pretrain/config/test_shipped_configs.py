"""Every shipped configuration is sound on the ranks that its header states, and does what the header says."""

import re
from collections import defaultdict

import pytest
from support.shipped import ShippedRun, shipped_runs

from pretrain.config.run import RunConfig
from pretrain.plan.plan import plan

RUNS = shipped_runs()
METHOD_KEYS = {"attention", "norm_placement", "reparametrization", "gamma_init"}
"""The arms of a comparison may differ in these keys of [model]."""
ARMS = {"deep-24": 6, "deep-48": 6, "deep-24-24": 8}
"""By what their names begin with, how many arms a comparison has."""


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_works_on_its_stated_ranks(run: ShippedRun) -> None:
    planned = plan(run.load(), run.world_size)
    assert planned.warnings == ()
    assert f"{planned.batch.tokens:,} a step; {planned.steps:,} steps" in run.header
    if "hostfile" in run.header:
        layout = f"pipeline {planned.pipeline} x data {planned.data} = {run.world_size} ranks"
        assert layout in run.header


def test_no_two_runs_share_a_folder() -> None:
    names = [run.load().run.name for run in RUNS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("size", ["1.3b", "6.7b"])
def test_clusters_train_the_size_in_their_names(size: str) -> None:
    runs = [run for run in RUNS if f"/{size}-" in run.file or f"gpt-{size}" in run.file]
    assert len(runs) == 3
    for run in runs:
        assert plan(run.load(), run.world_size).parameters.total == pytest.approx(
            float(size[:-1]) * 1e9, rel=0.1
        )


def arms_of_comparisons() -> dict[str, list[RunConfig]]:
    arms: dict[str, list[RunConfig]] = defaultdict(list)
    for config in (run.load() for run in RUNS):
        if found := re.match(r"deep-\d+(-\d+)?(?=-)", config.run.name):
            arms[found[0]].append(config)
    return arms


def test_arms_differ_in_the_method_alone() -> None:
    comparisons = arms_of_comparisons()
    assert {name: len(configs) for name, configs in comparisons.items()} == ARMS
    for name, configs in comparisons.items():
        attention = {plan(config, 1).parameters.parts["attention"] for config in configs}
        assert len(attention) == 1, name
        assert len({config.model.model_dump_json() for config in configs}) == ARMS[name]
        runs = [config.model_dump() for config in configs]
        for run in runs:
            run["run"].pop("name")
            for key in METHOD_KEYS:
                run["model"].pop(key)
        assert all(run == runs[0] for run in runs), name


def test_arms_read_the_data_of_one_preparation() -> None:
    runs = [run for run in RUNS if "translation/deep/" in run.file]
    (prepare,) = {command for run in runs for command in re.findall(r"surefoot prepare .*", run.header)}
    for config in (run.load() for run in runs):
        assert f"--vocabulary-size {config.model.source_vocabulary_size} " in prepare
        assert f"--max-length {config.data.max_source_length} " in prepare
