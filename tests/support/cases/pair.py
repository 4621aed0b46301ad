"""Configurations of the encoder-decoder of the tests, of which outline and modules are compared."""

from typing import Any

from support.cases.gpt import BLOCKS
from support.pair_model import pair_batches, pair_config
from support.training import Layout

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig

CASES = {name: BLOCKS[name] for name in ("plain", "llama", "post", "sigma_llama")} | {
    "joint": {"joint": True}
}


def make_case(layout: Layout, model: dict[str, Any]) -> RunConfig:
    """It returns the configuration of a case."""
    return pair_config(layout, model, {})


def make_batch(config: RunConfig, mesh: ParallelMesh) -> Any:
    """It returns one micro-batch."""
    return pair_batches(config, mesh, 1)[0]
