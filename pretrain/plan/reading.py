"""A configuration is read together with its plan, so that faults of both are told at once."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.shown import shown
from pretrain.config.loader import count, load_config, meant_config
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.plan.plan import Plan, plan
from pretrain.plan.rules import layout_problems


def read_plan(path: Path, overrides: Sequence[str], world_size: int | None) -> tuple[RunConfig, Plan]:
    """It returns a configuration and its plan for so many ranks, by default the fewest that it can run on.

    Raises ConfigurationError. Where values are of the wrong type, but what they mean is clear, it names what is wrong
    with the layout as well.
    """
    try:
        config = load_config(path, overrides)
    except ConfigurationError as error:
        meant = meant_config(path, overrides)
        if meant and (further := layout_problems(meant, world_size or meant.parallel.model_size)):
            problems = [*error.problems, *further]
            raise ConfigurationError(f"{shown(path)}: {count(problems)}", problems) from None
        raise
    return config, plan(config, world_size or config.parallel.model_size)
