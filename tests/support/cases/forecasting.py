"""Configurations of models that forecast, of which outline and modules are compared."""

from typing import Any

from support.forecasting_model import forecasting_batches, forecasting_config
from support.training import Layout

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig

CASES: dict[str, dict[str, Any]] = {
    "samformer": {},
    "samformer_pre_sigma": {"norm_placement": "pre", "reparametrization": "sigma", "init": "glorot"},
    "samformer_alone": {"instance_norm": False, "frozen_attention": True},
    "samformer_without_biases": {"bias": False},
    "temporal": {"kind": "temporal"},
    "temporal_alone": {
        "kind": "temporal",
        "instance_norm": False,
        "positions": "learned",
        "attention": {"num_heads": 2, "kind": "mlra"},
        "reparametrization": "sigma",
        "bias": False,
    },
    "tsmixer": {"kind": "tsmixer"},
    "tsmixer_apart": {"kind": "tsmixer", "share_layers": False, "instance_norm": False},
    "linear": {"kind": "linear"},
    "dlinear": {"kind": "dlinear"},
}
"""By name, keys of [model]."""


def make_case(layout: Layout, model: dict[str, Any]) -> RunConfig:
    """It returns the configuration of a case."""
    return forecasting_config(layout, model)


def make_batch(config: RunConfig, mesh: ParallelMesh) -> Any:
    """It returns one micro-batch."""
    return forecasting_batches(config, mesh, 1)[0]
