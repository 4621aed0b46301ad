"""What training changes on a rank is seen here as pieces of the whole model's tensors, by name.

So a checkpoint is written in any layout and read in any other: of a tensor a rank holds its tensor-parallel share, or,
with ZeRO, a run of elements of that. Of weights the pieces are the fp32 ones that the optimizer moves; those that a
bf16 model computes with are the same, rounded.

`live_state` is the same state as one tree in the order of this rank, for copies in host memory.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor, nn

from parallel.mesh import ParallelMesh
from pretrain.backend.live_state import (
    COUNTERS,
    is_unfused,
    moved_tensors,
    moved_tensors_of,
    renew_persistent,
)
from pretrain.backend.update_gate import UpdateGate
from pretrain.models.named import WEIGHT, Piece, persistent_buffers
from pretrain.models.outline import Outline
from pretrain.optim.optimizer import CountedIn, Counting

Scalars = dict[str, Any]
"""Plain values and tensors of one number, equal on all ranks."""


@dataclass(frozen=True)
class NamedModel:
    """It is the layers of this rank, whose tensors have names by the outline."""

    outline: Outline
    layers: Sequence[tuple[int, nn.Module]]
    """Each with its index in the whole model."""
    mesh: ParallelMesh

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """It yields all parameters, tied ones once, under the name of the layer that owns them."""
        seen: set[int] = set()
        for index, layer in self.layers:
            for name, parameter in layer.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    owner = self.outline.owner(index) if name == "weight" else index
                    yield f"{self.outline.names[owner]}.{name}", parameter

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """It yields all buffers that are state."""
        for index, layer in self.layers:
            for name, buffer in persistent_buffers(layer):
                yield f"{self.outline.names[index]}.{name}", buffer

    def is_sharded(self, name: str) -> bool:
        """It tells whether tensor-parallel ranks divide a tensor among them, or have copies."""
        return self.outline.tensors[name].sharded is not None


class StateSource(Protocol):
    """It gives saved state to the rank that it was made for, whatever layout it was saved in."""

    @property
    def moments(self) -> Sequence[str]:
        """These kinds the optimizer keeps of each weight; none where it was saved before the first update."""
        ...

    @property
    def scalars(self) -> Mapping[str, Scalars]:
        """It returns the numbers that go with the tensors."""
        ...

    def read(self, name: str, kind: str, start: int, count: int) -> Tensor:
        """It returns elements of this rank's share of a tensor, flat."""
        ...


@dataclass(frozen=True)
class Held:
    """It is what this rank holds of a weight that an optimizer moves, or of a buffer."""

    name: str
    tensor: Tensor
    start: int
    """Where it begins in the flattened share of this rank."""
    count: int
    """Its elements; what comes behind them is padding."""
    alike: bool
    """All data-parallel ranks hold the same."""
    spoken_for: bool
    """This tensor-parallel rank and stage writes it, others have copies."""
    optimizer: torch.optim.Optimizer | None = None
    """What moves it; none: nothing does."""
    moved: Tensor | None = None
    """What the optimizer keeps its state by; `tensor` is all of it, or lies in it."""

    @property
    def whole(self) -> bool:
        """It tells whether this is a tensor of its own, and not a run of elements in another."""
        return self.moved is None or self.moved is self.tensor

    def of(self, kind: str) -> Tensor:
        """It returns what corresponds to it in a tensor that the optimizer keeps, begun with zeros where there is none
        yet; of the kind WEIGHT, itself."""
        if kind == WEIGHT:
            return self.tensor
        assert self.optimizer is not None
        assert self.moved is not None
        state = self.optimizer.state[self.moved]
        if kind not in state:
            state[kind] = torch.zeros_like(self.moved)
        moments: Tensor = state[kind]
        if self.whole:
            return moments
        start = self.tensor.storage_offset() - self.moved.storage_offset()
        return moments.view(-1)[start : start + self.tensor.numel()]

    def flat(self, kind: str) -> Tensor:
        """It returns the same without padding, flat."""
        return self.of(kind).view(-1)[: self.count]

    @property
    def kinds(self) -> list[str]:
        """These kinds of tensors are there of it."""
        if self.optimizer is None or self.moved is None:
            return [WEIGHT]
        return [WEIGHT, *moments_of(self.optimizer, self.moved)]


class NamedState:
    """It knows the state of an engine by names: pieces to save, and where to put those that were saved."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        optimizer: torch.optim.Optimizer,
        gammas: torch.optim.Optimizer | None,
        counting: Counting,
        gate: UpdateGate,
        model: NamedModel,
    ) -> None:
        """`gammas` moves those of sigmaReparam, if there are any; `counting` says where both count updates."""
        self._engine = engine
        self._optimizer = optimizer
        self._gammas = gammas
        self._counting = counting
        self._gate = gate
        self._model = model

    def to_save(self) -> Iterator[Piece]:
        """It yields the pieces that this rank writes: over all ranks, every element is there once.

        What all data-parallel ranks hold alike they share out among themselves.
        """
        data = self._model.mesh.data
        mine = [held for held in self._held() if held.spoken_for and held.count]
        alike = [held for held in mine if held.alike]
        for held in [*alike[data.rank :: data.size], *(held for held in mine if not held.alike)]:
            for kind in held.kinds:
                if held.whole:
                    yield Piece(held.name, kind, held.of(kind), None)
                else:
                    yield Piece(held.name, kind, held.flat(kind), held.start)

    def scalars(self) -> dict[str, Scalars]:
        """It returns what is one number for the whole model, under names."""
        wrapper = self._engine.optimizer
        return {
            "weights": {"updates": updates_of(self._optimizer)},
            "gammas": {"updates": updates_of(self._gammas) if self._gammas else 0},
            "counters": {name: getattr(self._engine, name) for name in COUNTERS},
            "scale": dict(vars(wrapper.loss_scale_config)) if is_unfused(self._engine) else {},
        }

    @torch.no_grad()
    def fill(self, source: StateSource) -> None:
        """It puts saved state in place; `complete` comes next, on all ranks.

        Raises whatever reading does; some of the state is in place then.
        """
        for optimizer in filter(None, (self._optimizer, self._gammas)):
            optimizer.state.clear()
        self._fill_scalars(source.scalars)  # first, as torch has its counts: checksums go by the order
        held_of: dict[str, list[Held]] = {}
        for held in self._held():
            held_of.setdefault(held.name, []).append(held)
        for name, parameter in self._model.parameters():
            target, start, count = self._computed_with(parameter)
            values = source.read(name, WEIGHT, start, count)
            target[:count].copy_(values)
            for held in held_of.get(name, ()):  # which lie within what is computed with
                first = held.start - start
                held.flat(WEIGHT).copy_(values[first : first + held.count])
        for name, buffer in self._model.buffers():
            buffer.view(-1).copy_(source.read(name, WEIGHT, 0, buffer.numel()))
        for held in itertools.chain.from_iterable(held_of.values()):
            for kind in source.moments if held.optimizer else ():
                held.flat(kind).copy_(source.read(held.name, kind, held.start, held.count))

    @torch.no_grad()
    def clear_padding(self) -> None:
        """It sets to zero what belongs to no weight and is in no file: ZeRO-3 leaves it as memory was, and checksums
        are not to go by that."""
        for _, parameter in self._model.parameters():
            target, _, count = self._computed_with(parameter)
            target[count:].zero_()
        for held in self._held():
            for kind in held.kinds:
                held.of(kind).view(-1)[held.count :].zero_()

    def complete(self) -> None:
        """It renews what follows from the state; with ZeRO-3 all data-parallel ranks do so together."""
        if isinstance(self._engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
            renew_persistent(self._engine.optimizer)

    def _held(self) -> Iterator[Held]:
        """It yields all weights that the optimizer moves, then all buffers."""
        gate, model = self._gate, self._model
        names = {id(parameter): name for name, parameter in model.parameters()}
        for held in gate.masters():
            parameter = held.parameter
            yield Held(
                name=names[id(parameter)],
                tensor=held.weight,
                start=held.start,
                count=counted(parameter, held.weight, held.start),
                alike=not gate.masters_sharded,
                spoken_for=gate.counts(parameter),
                optimizer=self._optimizer,
                moved=held.moved,
            )
        gammas = {
            tensor.untyped_storage().data_ptr(): tensor
            for tensor in (moved_tensors_of(self._gammas) if self._gammas else ())
        }
        for name, buffer in model.buffers():
            moved = gammas.get(buffer.untyped_storage().data_ptr())
            yield Held(
                name=name,
                tensor=buffer,
                start=0,
                count=buffer.numel(),
                alike=True,
                spoken_for=model.is_sharded(name) or model.mesh.tensor.first,
                optimizer=None if moved is None else self._gammas,
                moved=moved,
            )

    def _computed_with(self, parameter: nn.Parameter) -> tuple[Tensor, int, int]:
        """It returns what this rank has of a weight to compute with, flat, where that begins, and how much counts."""
        shard = getattr(parameter, "ds_tensor", None)
        if shard is None:
            return parameter.view(-1), 0, parameter.numel()
        start = self._model.mesh.data.rank * shard.numel()
        return shard.view(-1), start, counted(parameter, shard, start)

    def _fill_scalars(self, saved: Mapping[str, Scalars]) -> None:
        """It puts the numbers in place. Weights that no run has saved come without any: all begins to count."""
        moved = moved_tensors(self._engine, self._optimizer)
        set_updates(
            self._optimizer, self._counting.weights, moved, saved.get("weights", {}).get("updates", 0)
        )
        if self._gammas:
            updates = saved.get("gammas", {}).get("updates", 0)
            set_updates(self._gammas, self._counting.gammas, moved_tensors_of(self._gammas), updates)
        for name in COUNTERS:
            setattr(self._engine, name, saved.get("counters", {}).get(name, 0))
        if is_unfused(self._engine):
            vars(self._engine.optimizer.loss_scale_config).update(saved.get("scale", {}))


def counted(parameter: nn.Parameter, piece: Tensor, start: int) -> int:
    """It counts the elements of a piece that are the parameter's; those behind them, of the last rank, are padding."""
    whole: int = getattr(parameter, "ds_numel", parameter.numel())
    return max(min(piece.numel(), whole - start), 0)


def moments_of(optimizer: torch.optim.Optimizer, moved: Tensor) -> list[str]:
    """It names what an optimizer keeps of each element of a tensor."""
    state = optimizer.state.get(moved, {})
    return [name for name, value in state.items() if isinstance(value, Tensor) and value.shape == moved.shape]


def updates_of(optimizer: torch.optim.Optimizer) -> int:
    """It returns how often an optimizer has moved its tensors, wherever it counts that; 0 where it does not."""
    holders = [*optimizer.state.values(), *optimizer.param_groups]
    return next((int(holder["step"]) for holder in holders if "step" in holder), 0)


def set_updates(
    optimizer: torch.optim.Optimizer, where: CountedIn, moved: Iterable[Tensor], updates: int
) -> None:
    """It has an optimizer go on counting. A fused one of torch's counts on the device."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for tensor in moved if where == "tensors" and updates else ():
        device = tensor.device if fused else "cpu"
        optimizer.state[tensor]["step"] = torch.tensor(float(updates), dtype=torch.float32, device=device)
    for group in optimizer.param_groups:
        group.pop("step", None)
        if where == "groups" and updates:
            group["step"] = updates
