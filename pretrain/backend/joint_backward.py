"""A pipeline stage that hands several tensors on takes one backward pass through all of them.

PipelineEngine goes backward from one output after the other (0.19.8). Where two of them come from the same layers, as
an encoder's states and what a decoder has made of them do, those layers would run backward twice in a micro-batch, and
a hook on a parameter would see two parts of its gradient one by one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import Tensor


class _Joined(torch.autograd.Function):
    """It is a zero that stands for several tensors: its backward pass hands each of them the gradient that is known."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *unit: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


def backward_at_once(engine: PipelineEngine, buffer_id: int) -> None:
    """It takes the place of the engine's BackwardPass, and goes back from all outputs of a stage together."""
    outputs, received = engine.pipe_buffers["outputs"][buffer_id], engine.grad_layer
    several = isinstance(outputs, tuple) and not (engine.is_last_stage() or engine.is_grad_partitioned)
    if not several:
        PipelineEngine._exec_backward_pass(engine, buffer_id)
        return
    joined = _Joined.apply(received, *(output for output in outputs if output.is_floating_point()))
    engine.pipe_buffers["outputs"][buffer_id] = joined
    engine.grad_layer = torch.ones_like(joined)
    PipelineEngine._exec_backward_pass(engine, buffer_id)
    engine.grad_layer = received  # buffers that the next micro-batch's gradients are received in
