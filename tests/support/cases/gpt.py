"""Configurations of a GPT, of which outline and modules are compared."""

from typing import Any

from support.training import Layout, make_batches, make_config

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig

MLRA = {"kind": "mlra", "rank": 12}
BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mlra_replicated": {"attention": MLRA},
    "mlra_sharded_grouped": {
        "attention": {**MLRA, "down_projection": "sharded", "num_key_value_heads": 2},
        "bias": False,
    },
    "llama": {
        "activation": "swiglu",
        "normalization": "rms_norm",
        "bias": False,
        "tied_embeddings": False,
        "attention": {"num_key_value_heads": 2},
    },
    "swiglu": {"activation": "swiglu", "ffn_hidden_size": 40},
    "rms_norm": {"normalization": "rms_norm"},
    "post": {"norm_placement": "post", "positions": "learned"},
    "none": {"norm_placement": "none"},
    "deepnorm": {"norm_placement": "deepnorm", "positions": "sinusoidal"},
    "learned_untied": {"positions": "learned", "tied_embeddings": False},
    "sigma": {"reparametrization": "sigma"},
    "sigma_llama": {
        "reparametrization": "sigma",
        "sigma_vectors": 1,
        "activation": "swiglu",
        "attention": {"num_key_value_heads": 2},
    },
    "sigma_mlra_replicated": {"reparametrization": "sigma_stats_only", "attention": MLRA},
    "sigma_mlra_sharded": {
        "reparametrization": "sigma",
        "attention": {**MLRA, "down_projection": "sharded", "num_key_value_heads": 2},
    },
}
"""Settings of Transformer blocks."""
CASES = BLOCKS | {"padded": {"vocabulary_multiple": 512}}
"""By name, keys of [model]."""


def make_case(layout: Layout, model: dict[str, Any]) -> RunConfig:
    """It returns the configuration of a case."""
    return make_config(layout, **model)


def make_batch(config: RunConfig, mesh: ParallelMesh) -> Any:
    """It returns one micro-batch."""
    return make_batches(config, mesh, 1)[0]
