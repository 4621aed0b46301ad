"""Faults of types and of the layout are told together."""

from pathlib import Path

import pytest

from pretrain.errors import ConfigurationError
from pretrain.plan.reading import read_plan

DEMO = Path(__file__).parents[3] / "configs/gpt/demo.toml"


def faults(*overrides: str, world_size: int | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as told:
        read_plan(DEMO, overrides, world_size)
    return [problem.key for problem in told.value.problems]


def test_a_configuration_and_its_plan() -> None:
    config, planned = read_plan(DEMO, ["parallel.tensor=2"], None)
    assert planned.world_size == config.parallel.tensor == 2


@pytest.mark.parametrize("steps", ['"100"', "100.0"])
def test_faults_of_the_layout_stand_beside_those_of_types(steps: str) -> None:
    layout = "data.global_batch_size=7"
    assert (of_layout := faults(layout, world_size=2))
    assert faults(f"run.steps={steps}", layout, world_size=2) == ["run.steps", *of_layout]


@pytest.mark.parametrize("unclear", ['run.steps="many"', "run.stpes=3", "run.steps=-1", "run.steps=nan"])
def test_where_it_is_not_clear_what_was_meant_nothing_is_made_of_it(unclear: str) -> None:
    assert faults(unclear, "data.global_batch_size=7", world_size=2) == [unclear.partition("=")[0]]
