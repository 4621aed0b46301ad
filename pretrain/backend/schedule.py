"""A schedule runs micro-batches on a DeepSpeed engine, with and without pipeline: for training and for evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import Tensor

from parallel.mesh import ParallelMesh
from pretrain.backend.joint_backward import backward_at_once
from pretrain.backend.quiet import quiet
from pretrain.backend.transfer import DeviceCopies, MicroBatch
from pretrain.runtime.ranges import Part, ranged, ranging
from pretrain.tasks.task import Objective

Consult = Callable[[Tensor], None]
"""It is told the mean loss of the micro-batches; ranks that have no loss tell it 0."""

PARTS: Mapping[type[schedule.PipeInstruction], Part] = {
    schedule.LoadMicroBatch: "data",
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    schedule.SendActivation: "stages",
    schedule.RecvActivation: "stages",
    schedule.SendGrad: "stages",
    schedule.RecvGrad: "stages",
    schedule.ReduceGrads: "reduction",
    schedule.ReduceTiedGrads: "reduction",
}
"""What a profile counts DeepSpeed's instructions to; the update has a judge before it."""


class Schedule(ABC):
    """A schedule is the order in which an engine runs the micro-batches of a step."""

    @abstractmethod
    def train(self, batches: Sequence[MicroBatch], consult: Consult) -> None:
        """It runs all micro-batches forward and backward, calls `consult` once and then has the optimizer step."""

    @abstractmethod
    def evaluate(self, batches: Sequence[MicroBatch]) -> Tensor:
        """It runs all micro-batches forward and returns the mean of their losses, 0 on ranks that have none."""


class InOrder(Schedule):
    """Without pipeline one micro-batch runs after the other."""

    def __init__(self, engine: DeepSpeedEngine, objective: Objective, device: torch.device) -> None:
        self._engine = engine
        engine.allreduce_gradients = ranging("reduction", engine.allreduce_gradients)
        self._objective = objective
        self._copies = DeviceCopies(device)

    def train(self, batches: Sequence[MicroBatch], consult: Consult) -> None:
        self._engine.train()
        losses: list[Tensor] = []
        for position, batch in enumerate(self._copies(batches)):
            loss = self._forward(*batch)
            with ranged("backward"):
                self._engine.backward(loss)
            losses.append(loss.detach())
            if position == len(batches) - 1:
                consult(reduce(torch.add, losses) / len(batches))
            with ranged("update"):
                self._engine.step()

    def evaluate(self, batches: Sequence[MicroBatch]) -> Tensor:
        self._engine.eval()
        with torch.no_grad():
            return torch.stack([self._forward(*batch) for batch in self._copies(batches)]).mean()

    def _forward(self, inputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        with ranged("forward"):
            return self._objective(self._engine(*inputs), labels)


class Pipelined(Schedule):
    """With pipeline micro-batches run by DeepSpeed's schedules, 1F1B for training. The last stage alone has a loss.

    DeepSpeed calls the objective itself, as the `loss_fn` of the module.
    """

    def __init__(self, engine: PipelineEngine, device: torch.device, *, last_stage: bool) -> None:
        self._engine = engine
        # For what is received first and second, and so on, DeepSpeed keeps one buffer each (0.19.8): an activation and
        # a gradient would share it, also where one has integers and the other has not.
        engine._allocate_or_extend_buffers = partial(_allocate, engine)
        self._copies = DeviceCopies(device)
        self._last_stage = last_stage
        self._shapes: set[tuple[torch.Size, ...]] = set()

    def train(self, batches: Sequence[MicroBatch], consult: Consult) -> None:
        self._engine.train()
        self._expect(batches)
        update = PipelineEngine._INSTRUCTION_MAP[schedule.OptimizerStep]

        def judged_update(engine: PipelineEngine, **kwargs: Any) -> None:
            total = engine.total_loss if self._last_stage else torch.zeros(())
            consult(total / len(batches))
            with ranged("update"):
                update(engine, **kwargs)

        # The schedule looks instructions up through the instance, so the class stays as it is.
        instructions = {**PipelineEngine._INSTRUCTION_MAP, schedule.BackwardPass: backward_at_once}
        self._engine._INSTRUCTION_MAP = {
            **{kind: ranging(PARTS[kind], instructions[kind]) for kind in PARTS},
            schedule.OptimizerStep: judged_update,
        }
        with quiet():
            self._engine.train_batch(_as_pairs(self._copies(batches)))

    def evaluate(self, batches: Sequence[MicroBatch]) -> Tensor:
        self._engine.eval()
        self._expect(batches)
        with torch.no_grad():
            losses = self._engine.eval_batch(
                _as_pairs(self._copies(batches)),
                reduce_output=None,
                bcast_loss=False,
                num_micro_batches=len(batches),
                compute_loss=True,
            )
            return torch.stack(losses).mean() if self._last_stage else torch.zeros(())

    def _expect(self, batches: Sequence[MicroBatch]) -> None:
        """It has stages tell each other the shapes of what they hand on when they change, and with each micro-batch
        where those of a step differ. Every stage has the batches, so all of them know."""
        shapes = {tuple(tensor.shape for tensor in inputs) for inputs, _ in batches}
        self._engine.dynamic_shape = len(shapes) > 1
        if shapes != self._shapes:
            self._engine.reset_activation_shape()
        self._shapes = shapes


def make_schedule(engine: DeepSpeedEngine, objective: Objective, mesh: ParallelMesh) -> Schedule:
    """It returns the schedule that fits an engine; under pipeline parallelism its module has the objective already."""
    if isinstance(engine, PipelineEngine):
        return Pipelined(engine, mesh.device, last_stage=mesh.pipeline.last)
    return InOrder(engine, objective, mesh.device)


def _allocate(engine: PipelineEngine, index: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    """It returns a buffer of its own for what is received."""
    return engine._allocate_buffer(shape, dtype=dtype, num_buffers=1)[0]


def _as_pairs(batches: Iterable[MicroBatch]) -> Iterator[Any]:
    """It yields micro-batches as PipelineEngine takes them: a single input is a tensor, not a tuple."""
    return ((inputs if len(inputs) > 1 else inputs[0], labels) for inputs, labels in batches)
