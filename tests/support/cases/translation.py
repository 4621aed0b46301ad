"""Configurations of an encoder-decoder that translates, of which outline and modules are compared."""

from typing import Any

from support.cases.gpt import BLOCKS
from support.training import Layout
from support.translation import TARGET, translation_batches, translation_config

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig

OTHER = {"target_vocabulary_size": TARGET}
CASES: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in model.items() if key != "tied_embeddings"}
    for name, model in BLOCKS.items()
} | {
    "half_shared": {"embeddings": "half_shared", **OTHER},
    "separate_uneven": {"embeddings": "separate", **OTHER, "encoder_layers": 3, "decoder_layers": 1},
    "deepnorm_mlra": {"norm_placement": "deepnorm", "attention": {"kind": "mlra", "rank": 12}},
}
"""By name, keys of [model]."""


def make_case(layout: Layout, model: dict[str, Any]) -> RunConfig:
    """It returns the configuration of a case."""
    return translation_config(layout, model)


def make_batch(config: RunConfig, mesh: ParallelMesh) -> Any:
    """It returns one micro-batch."""
    return translation_batches(config, mesh, 1)[0]
