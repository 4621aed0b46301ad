"""Small training runs for tests have a configuration, fixed random batches, and an engine on this rank's mesh."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import pytest
import torch
from _pytest.mark import ParameterSet
from support.distributed import DEVICE_TYPE

from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.scaler import SCALER, Scaler
from data_pipeline.text.batch import TokenBatch
from parallel.config import ParallelConfig
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine, assemble_evaluator
from pretrain.engine.engine import TrainEngine
from pretrain.engine.evaluator import Evaluator
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, Verdict

AnyBatch = TypeVar("AnyBatch", bound=Any)

VOCABULARY = 300
SEQUENCE = 32


@dataclass(frozen=True)
class Layout:
    """It is a point in the space of layouts."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    zero: int = 0
    accumulation: int = 1
    dtype: str = "fp32"
    checkpointing: bool = False

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        parts = [f"tp{self.tensor}", f"pp{self.pipeline}", f"dp{self.data}", f"zero{self.zero}"]
        parts += [f"acc{self.accumulation}", self.dtype] + ["recompute"] * self.checkpointing
        return "-".join(parts)


def make_config(layout: Layout, global_batch_size: int = 12, **model: Any) -> RunConfig:
    """It configures a 4-block GPT that trains in milliseconds."""
    attention = {"num_heads": 4, **model.pop("attention", {})}
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 100, "seed": 7},
            "model": {
                "num_layers": 4,
                "hidden_size": 32,
                "vocabulary_size": VOCABULARY,
                "attention": attention,
                "activation_checkpointing": layout.checkpointing,
                **model,
            },
            "parallel": {
                "tensor": layout.tensor,
                "pipeline": layout.pipeline,
                "zero_stage": layout.zero,
                "timeout_seconds": 60,
                "control_timeout_seconds": 60,
            },
            "data": {
                "sources": [{"path": "unused"}],
                "sequence_length": SEQUENCE,
                "micro_batch_size": global_batch_size // (layout.accumulation * layout.data),
                "global_batch_size": global_batch_size,
            },
            "optimizer": {"learning_rate": 1e-2, "gradient_clipping": 0.5},
            "precision": {"dtype": layout.dtype},
        }
    )


def make_mesh(config: ParallelConfig) -> ParallelMesh:
    """It returns the mesh over the ranks of the rig."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = torch.device("cuda", rank) if DEVICE_TYPE == "cuda" else torch.device("cpu")
    return ParallelMesh.over_world(config, rank, world_size, rank, device)


def make_batches(config: RunConfig, mesh: ParallelMesh, step: int) -> list[TokenBatch]:
    """It returns this rank's micro-batches of a global batch that depends on the step alone; some targets are
    masked."""
    generator = torch.Generator().manual_seed(step)
    size, length = config.data.global_batch_size, config.data.sequence_length
    blocks = torch.randint(0, VOCABULARY, (size, length + 1), generator=generator)
    weights = (torch.rand(size, length, generator=generator) > 0.1).float()
    rows = torch.arange(size).view(-1, mesh.data.size, config.data.micro_batch_size)[:, mesh.data.rank]
    return [TokenBatch(blocks[r, :-1], blocks[r, 1:], weights[r]) for r in rows]


def on_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """It returns a batch with its tensors on a device, as the engine moves them."""
    parts = {part.name: getattr(batch, part.name) for part in fields(batch)}
    tensors = {name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor)}
    return replace(batch, **tensors)


def proceed(report: StepReport) -> Verdict:
    return Verdict(Action.PROCEED)


def make_engine(config: RunConfig, mesh: ParallelMesh) -> TrainEngine:
    """It returns the engine of a run, as `python -m pretrain` assembles it."""
    planned = plan(config, mesh.world_size)
    return assemble_engine(config, planned, mesh, detect_kernels(), companions_of(config))


def companions_of(config: RunConfig) -> dict[str, bytes]:
    """It returns files that go with a model: that of a forecaster, whose series deviate by 1, 2, 3 and so on."""
    if not isinstance(config.data, SeriesConfig):
        return {}
    channels = range(config.data.channels)
    scaler = Scaler(
        columns=tuple(f"column {d}" for d in channels),
        means=tuple(10.0 * d for d in channels),
        deviations=tuple(d + 1.0 for d in channels),
        step_seconds=3600.0,
    )
    return {SCALER: scaler.content}


def make_evaluator(config: RunConfig, mesh: ParallelMesh) -> Evaluator:
    """It returns an evaluator of the run's initial weights, without an optimizer."""
    return assemble_evaluator(config, plan(config, mesh.world_size), mesh, detect_kernels())


def slow(*values: Any) -> ParameterSet:
    """It marks a case that repeats in another layout what a faster one shows; `make test-slow` runs it."""
    return pytest.param(*values, marks=pytest.mark.slow)
