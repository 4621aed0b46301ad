"""These configurations have all probes."""

from typing import Any

from support.training import (
    Layout,
    make_config,
)

from pretrain.config.run import ProbesConfig, RunConfig


def probed_config(layout: Layout, model: dict[str, Any], probes: dict[str, Any]) -> RunConfig:
    config = make_config(layout, **model)
    return config.model_copy(update={"probes": ProbesConfig(**probes)})
