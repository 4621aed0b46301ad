"""Configurations of an encoder of speech, of which outline and modules are compared."""

from typing import Any

from support.cases.gpt import BLOCKS
from support.speech_model import speech_batches, speech_config
from support.training import Layout

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig

CASES: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in model.items() if key != "tied_embeddings"}
    for name, model in BLOCKS.items()
} | {"cape": {"positions": "cape"}, "subsampling": {"subsampling": {"kernel": 3, "stride": 2}}}
"""By name, keys of [model]."""


def make_case(layout: Layout, model: dict[str, Any]) -> RunConfig:
    """It returns the configuration of a case."""
    return speech_config(layout, model)


def make_batch(config: RunConfig, mesh: ParallelMesh) -> Any:
    """It returns one micro-batch."""
    return speech_batches(config, mesh, 1)[0]
