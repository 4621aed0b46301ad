"""Small models that forecast: configurations, and batches of random windows."""

from typing import Any

import torch
from support.training import Layout, make_config

from data_pipeline.series.batch import SeriesBatch
from data_pipeline.series.config import SeriesConfig
from parallel.mesh import ParallelMesh
from pretrain.config.run import MODELS, RunConfig

CHANNELS, LOOKBACK, HORIZON = 3, 24, 8


def forecasting_config(layout: Layout, model: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    """It returns the configuration of a run; SAMformer with four blocks and two heads where `model` says no kind."""
    base = make_config(layout)
    table = {"kind": "samformer", **(model or {})}
    defaults: dict[str, dict[str, Any]] = {
        "samformer": {"num_layers": 4, "num_heads": 2, "head_size": 5},
        "temporal": {"num_layers": 4, "hidden_size": 16, "attention": {"num_heads": 2}},
        "tsmixer": {"num_layers": 4, "ffn_hidden_size": 10, "dropout": 0.0},
        "dlinear": {"moving_average": 5},
    }
    recompute = {"activation_checkpointing": True} if layout.checkpointing else {}
    section = MODELS.sections[table["kind"]]
    settings = section.model_validate({**defaults.get(table["kind"], {}), **recompute, **table})
    common = base.data.model_dump(exclude={"kind", "sequence_length"})
    sizes = {"channels": CHANNELS, "lookback": LOOKBACK, "horizon": HORIZON, **data}
    return base.model_copy(update={"model": settings, "data": SeriesConfig(**common, **sizes)})


def forecasting_batches(config: RunConfig, mesh: ParallelMesh, step: int) -> list[SeriesBatch]:
    """It returns this rank's micro-batches of a global batch that depends on the step alone: the future is the past
    turned, with some noise, and one window is damaged."""
    generator = torch.Generator().manual_seed(step)
    size, data = config.data.global_batch_size, config.data
    levels = torch.randn(size, data.channels, 1, generator=generator)
    x = 2 * levels + torch.randn(size, data.channels, data.lookback, generator=generator)
    noise = torch.randn(size, data.channels, data.horizon, generator=generator)
    y = x[..., : data.horizon].flip(-1) + 0.1 * noise
    weights = torch.ones(size)
    x[1], y[1], weights[1] = 0, 0, 0
    rows = torch.arange(size).view(-1, mesh.data.size, data.micro_batch_size)[:, mesh.data.rank]
    return [SeriesBatch(x[r], y[r], weights[r]) for r in rows]
