"""DeepSpeed takes as much memory for the gradients that it reduces as the plan says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from support.distributed import run_distributed
from support.steps import train
from support.training import Layout, make_config, make_engine, make_mesh, slow

from pretrain.config.run import RunConfig
from pretrain.plan.memory import bucket_bytes
from pretrain.plan.plan import plan


def buffers_of_a_step(config: RunConfig, numbers: int) -> list[int]:
    """It returns the bytes of every buffer for so many numbers that a rank makes from start to end of a step."""
    made, empty = [], torch.empty

    def spy(*size: Any, **options: Any) -> torch.Tensor:
        buffer = empty(*size, **options)
        # What holds all gradients of an unsharded rank for the optimizer may be as large; the plan has it elsewhere.
        if buffer.shape == (numbers,) and sys._getframe(1).f_code.co_name != "copy_grads_in_partition":
            made.append(buffer.nbytes)
        return buffer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", spy)
        train(make_engine(config, make_mesh(config.parallel)), config, 1, 1)
    return made


def largest_copy_of_a_step(config: RunConfig) -> int:
    """It returns the bytes that the engine's own reduction of gradients takes."""
    copies, reduce = [], DeepSpeedEngine.allreduce_bucket

    def spy(engine: DeepSpeedEngine, bucket: list[torch.Tensor], *rest: Any, **options: Any) -> torch.Tensor:
        numbers, size = sum(gradient.numel() for gradient in bucket), bucket[0].element_size()
        cast = engine.communication_data_type
        copies.append(numbers * (size * (len(bucket) > 1) + cast.itemsize * (cast != bucket[0].dtype)))
        return reduce(engine, bucket, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepSpeedEngine, "allreduce_bucket", spy)
        train(make_engine(config, make_mesh(config.parallel)), config, 1, 1)
    return max(copies)


BUFFERS = [
    (Layout(data=2, zero=1), {}),
    (Layout(data=2, zero=2, dtype="bf16"), {}),
    (Layout(pipeline=2, zero=1, accumulation=2), {}),
    slow(Layout(data=2, zero=2), {}),
    slow(Layout(tensor=2, zero=1), {}),
    slow(Layout(data=2, zero=3, dtype="bf16"), {}),
    slow(Layout(data=2, zero=3), {"overlap_comm": True}),
    (Layout(data=2, zero=2, dtype="bf16"), {"overlap_comm": True, "reduce_bucket_size": 70_000}),
    (Layout(data=2, zero=1), {"contiguous_gradients": False}),
]


@pytest.mark.parametrize(("layout", "zero"), BUFFERS, ids=str)
def test_buffers_are_as_large_as_planned(layout: Layout, zero: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(layout)
    if zero:
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": layout.zero, **zero}}))
        config = config.model_copy(update={"run": config.run.model_copy(update={"deepspeed_config": path})})
    planned = plan(config, layout.world_size)
    settings = planned.deepspeed["zero_optimization"]
    for made in run_distributed(buffers_of_a_step, layout.world_size, config, settings["reduce_bucket_size"]):
        assert sum(made) == planned.memory.buckets
        assert bool(made) == settings.get("contiguous_gradients", True)


COPIES = [
    Layout(data=2),
    Layout(data=2, zero=1, dtype="bf16", accumulation=2),
    slow(Layout(data=2, dtype="bf16")),
    slow(Layout(tensor=2, data=2, zero=1, dtype="bf16")),
    slow(Layout(pipeline=2, data=2, zero=1, dtype="bf16", accumulation=2)),
]


@pytest.mark.parametrize("layout", COPIES, ids=str)
def test_copies_are_as_large_as_planned(layout: Layout) -> None:
    config = make_config(layout)
    stages = plan(config, layout.world_size).stages
    zero = {"stage": layout.zero}
    planned = {bucket_bytes(config, zero, stage.parameters, layout.data, activations=0) for stage in stages}
    assert set(run_distributed(largest_copy_of_a_step, layout.world_size, config)) == planned
