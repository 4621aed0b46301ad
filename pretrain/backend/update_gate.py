"""An update gate acts between the last backward and the update, for every optimizer that DeepSpeed wraps.

DeepSpeed judges a step by itself: it computes the gradient norm, looks for overflow and skips. `UpdateGate`
takes the norm and the verdict out of its hands and puts ours in, through the narrowest hook of each wrapper:

| precision, ZeRO | wrapper                | gradients                     | veto and norm enter through        |
|-----------------|------------------------|-------------------------------|------------------------------------|
| fp32, 0         | none                   | .grad, all                    | step; clip_fp32_gradients          |
| bf16, 0         | FP16_UnfusedOptimizer  | .grad, all                    | step                               |
| bf16, 1         | BF16_Optimizer         | fp32_groups_gradients, all    | step                               |
| fp32 1, any 2   | DeepSpeedZeroOptimizer | averaged_gradients, own share | check_overflow, scaled_global_norm |
| any, 3          | ZeroOptimizer_Stage3   | averaged_gradients, own share | overflow check, _get_norm_groups   |

Its own norm is wrong for fp32, ZeRO-0 and pipeline: replicated parameters count only on rank 0 of the
pipeline x tensor group, so that the norms of later stages lack theirs (`clip_grad_norm_` in 0.19.8).
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from parallel.mesh import ParallelMesh
from parallel.statistics import squared_norms
from pretrain.backend.live_state import renew_persistent


class LocalGradient(NamedTuple):
    """It is what this rank holds of one parameter's averaged gradient."""

    parameter: nn.Parameter
    gradient: Tensor
    start: int = 0
    """Where it begins in the flattened parameter, of which it may be a piece."""


class LocalWeight(NamedTuple):
    """It is what this rank holds of the weights that the optimizer moves: of one parameter, all or a piece."""

    parameter: nn.Parameter
    weight: Tensor
    moved: Tensor
    """What the optimizer moves and keeps its moments by; the weight is all of it, or lies in it."""
    start: int = 0
    """Where it begins in the flattened parameter."""


class Squares(NamedTuple):
    """They are the sums of the squares of what this rank holds of gradients, and speaks for."""

    parameters: list[nn.Parameter]
    """One of which it holds two pieces stands there twice."""
    values: Tensor
    """One each, float64, on the device."""


class UpdateGate(ABC):
    """A gate reads the averaged gradients before the update and lets it pass or not."""

    def __init__(self, engine: DeepSpeedEngine, mesh: ParallelMesh) -> None:
        self._engine = engine
        self._mesh = mesh
        self._veto = False
        self._squares: Squares | None = None
        # On the host, where it comes from: wrappers look at it, and are not to wait for the device.
        self._norm = torch.zeros(())
        self._install()

    @property
    @abstractmethod
    def sharded(self) -> bool:
        """It tells whether each data-parallel rank holds its own share of the gradients, or all of them."""

    @abstractmethod
    def gradients(self) -> Iterator[LocalGradient]:
        """It yields parameters with the averaged gradients that this rank holds of them."""

    @property
    @abstractmethod
    def masters_sharded(self) -> bool:
        """It tells whether each data-parallel rank holds its own share of the weights that the optimizer moves."""

    @abstractmethod
    def masters(self) -> Iterator[LocalWeight]:
        """It yields parameters with the weights, fp32, that the optimizer moves; a bf16 model has others."""

    @abstractmethod
    def renew(self) -> None:
        """It makes what the model computes with anew from `masters` that were moved; all data ranks do so together."""

    @abstractmethod
    def _install(self) -> None:
        """It hooks into the wrapper."""

    def squared_norm(self) -> Tensor:
        """It returns this rank's share of the squared global gradient norm: summed over all ranks it is the whole."""
        total = self.squares().values.sum()
        return total if self.sharded else total / self._mesh.data.size

    def squares(self) -> Squares:
        """It returns the squares by parameter, which are computed once until `gradients_changed`."""
        if self._squares is None:
            held = [held for held in self.gradients() if self.counts(held.parameter)]
            none = torch.zeros(0, dtype=torch.float64, device=self._mesh.device)
            values = squared_norms([one.gradient for one in held]) if held else none
            self._squares = Squares([one.parameter for one in held], values)
        return self._squares

    def gradients_changed(self) -> None:
        """It is called when gradients have been averaged, and after each change to them until the update."""
        self._squares = None

    def decide(self, norm: float, *, apply: bool) -> None:
        """It takes the verdict on the coming update and the global norm that it is clipped by."""
        self._veto = not apply
        self._norm.fill_(norm)

    def set_clipping(self) -> None:
        """It has the wrapper clip as configured now, also after a load."""
        self._engine.optimizer.clip_grad = self._engine.gradient_clipping()

    def counts(self, parameter: nn.Parameter) -> bool:
        """It tells whether this rank speaks for a parameter.

        Replicas count once: tensor-parallel ones on tensor rank 0, tied ones on their first stage.
        """
        if getattr(parameter, "ds_pipe_replicated", False):
            return False
        return self._mesh.tensor.first or getattr(parameter, "tensor_model_parallel", False)


class SteppedGate(UpdateGate):
    """Every rank holds all gradients: the optimizer's step itself is judged, and clipping is ours."""

    sharded = False

    def _install(self) -> None:
        self._replace_step()

    def set_clipping(self) -> None:
        self._engine.optimizer.clip_grad = 0.0

    def _replace_step(self) -> None:
        """It makes the optimizer's step a no-op under a veto; the engine clears the gradients either way."""
        optimizer = self._engine.optimizer
        step = optimizer.step

        def judged_step() -> None:
            if not self._veto:
                self._clip()
                step()

        optimizer.step = judged_step
        self.set_clipping()

    def _clip(self) -> None:
        """It scales the gradients down to the limit by the norm that was handed over."""
        limit = self._engine.gradient_clipping()
        norm = self._norm  # the host would wait for that of the device
        if limit and norm > limit:
            gradients = [held.gradient for held in self.gradients()]
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).item())


class PlainGate(SteppedGate):
    """Under ZeRO-0 every rank holds all gradients in `.grad`."""

    masters_sharded = False

    def masters(self) -> Iterator[LocalWeight]:
        optimizer = self._engine.optimizer
        if isinstance(optimizer, FP16_UnfusedOptimizer):
            for parameters, weights in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                yield from map(LocalWeight, parameters, weights, weights)
        else:
            for parameter in self._parameters:
                yield LocalWeight(parameter, parameter, parameter)

    @torch.no_grad()
    def renew(self) -> None:
        optimizer = self._engine.optimizer
        if isinstance(optimizer, FP16_UnfusedOptimizer):  # else the masters are the parameters
            for parameters, weights in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                torch._foreach_copy_(parameters, weights)

    def gradients(self) -> Iterator[LocalGradient]:
        for parameter in self._parameters:
            if parameter.grad is not None:
                yield LocalGradient(parameter, parameter.grad)

    def _install(self) -> None:
        super()._install()
        self._parameters = list(self._engine.module.parameters())
        self._engine.clip_fp32_gradients = lambda: None


class BFloat16Gate(SteppedGate):
    """BF16_Optimizer has fp32 gradients of all parameters, and shards optimizer states."""

    masters_sharded = True

    def masters(self) -> Iterator[LocalWeight]:
        optimizer = self._engine.optimizer
        groups = zip(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, strict=True)
        for parameters, flat in groups:
            yield from cut(flat, parameters, start=self._mesh.data.rank * flat.numel())

    def renew(self) -> None:
        self._engine.optimizer.update_lp_params()

    def gradients(self) -> Iterator[LocalGradient]:
        optimizer = self._engine.optimizer
        for parameters, gradients in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
            yield from map(LocalGradient, parameters, gradients)


class ShardedGate(UpdateGate):
    """Under ZeRO-1 and 2 each rank holds the averaged gradients of its partition."""

    sharded = True
    masters_sharded = True

    def masters(self) -> Iterator[LocalWeight]:
        optimizer = self._engine.optimizer
        for group, parameters in enumerate(optimizer.params_in_partition):
            flat = optimizer.single_partition_of_fp32_groups[group]
            yield from cut(flat, parameters, start=optimizer.first_offset[group])

    def renew(self) -> None:
        self._engine.optimizer.update_lp_params()

    def gradients(self) -> Iterator[LocalGradient]:
        optimizer = self._engine.optimizer
        for group, parameters in enumerate(optimizer.params_in_partition):
            # A partition may begin within its first parameter. Zeros that fill up the last one belong to none; some
            # carry a mark, those at the end do not.
            gradients = without_padding(optimizer.averaged_gradients[group])
            starts = itertools.chain([optimizer.first_offset[group]], itertools.repeat(0))
            yield from map(LocalGradient, parameters, gradients, starts)

    def _install(self) -> None:
        optimizer = self._engine.optimizer
        optimizer.check_grad_overflow = True
        optimizer.check_overflow = self._report_overflow
        optimizer.scaled_global_norm = lambda norm_type=2: self._norm

    def _report_overflow(self, partition_gradients: bool = True) -> None:
        # Overflow is DeepSpeed's word for an update that is withheld; it clears up after itself.
        self._engine.optimizer.overflow = self._veto


class Stage3Gate(UpdateGate):
    """Under ZeRO-3 gradients, like weights, are sharded by parameter."""

    sharded = True
    masters_sharded = True

    def masters(self) -> Iterator[LocalWeight]:
        optimizer = self._engine.optimizer
        groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
        for parameters, flat in groups:
            # Detached: autograd has rules of its own for several views of one tensor.
            shards = flat.detach().split([parameter.ds_tensor.ds_numel for parameter in parameters])
            for parameter, shard in zip(parameters, shards, strict=True):
                yield LocalWeight(parameter, shard, flat, start=self._mesh.data.rank * shard.numel())

    @torch.no_grad()
    def renew(self) -> None:
        shards = [parameter.ds_tensor for group in self._engine.optimizer.fp16_groups for parameter in group]
        torch._foreach_copy_(shards, [held.weight for held in self.masters()])
        renew_persistent(self._engine.optimizer)

    def gradients(self) -> Iterator[LocalGradient]:
        optimizer = self._engine.optimizer
        for group, parameters in enumerate(optimizer.fp16_groups):
            # Pieces of ZeRO-3 begin where the rank's shard does.
            for parameter, gradient in zip(parameters, optimizer.averaged_gradients[group], strict=True):
                yield LocalGradient(parameter, gradient, start=self._mesh.data.rank * gradient.numel())

    def _install(self) -> None:
        optimizer = self._engine.optimizer
        optimizer._overflow_check_and_loss_scale_update = self._report_overflow
        optimizer._get_norm_groups = lambda: [self._norm]

    def _report_overflow(self, update_scale: bool = True) -> bool:
        self._engine.optimizer.overflow = self._veto
        return self._veto


def without_padding(gradients: Iterable[Tensor]) -> list[Tensor]:
    """It lists the gradients that belong to a parameter: ZeRO marks the zeros that it fills gaps with."""
    return [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]


def cut(flat: Tensor, parameters: Iterable[nn.Parameter], *, start: int) -> Iterator[LocalWeight]:
    """It yields the pieces of `flat`, elements [start, start + len) of all parameters in a row, less padding."""
    first, stop = 0, start + flat.numel()
    for parameter in parameters:
        last = first + parameter.numel()
        low, high = max(first, start), min(last, stop)
        if low < high:
            yield LocalWeight(parameter, flat[low - start : high - start], flat, start=low - first)
        first = last


def make_gate(engine: DeepSpeedEngine, mesh: ParallelMesh) -> UpdateGate:
    """It returns the gate that fits the optimizer that DeepSpeed chose."""
    gates: list[tuple[type, type[UpdateGate]]] = [
        (BF16_Optimizer, BFloat16Gate),
        (DeepSpeedZeroOptimizer, ShardedGate),
        (DeepSpeedZeroOptimizer_Stage3, Stage3Gate),
    ]
    for wrapper, gate in gates:
        if isinstance(engine.optimizer, wrapper):
            return gate(engine, mesh)
    return PlainGate(engine, mesh)
