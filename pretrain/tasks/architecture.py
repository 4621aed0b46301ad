"""This is what a task says of a stock architecture of Hugging Face's: which of its models that holds, and how.

The tensors of the two sides are paired by maps that go both ways, so that what is exported and imported again is the
same by the bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from pretrain.errors import Problem
from pretrain.tasks.config import TaskConfig

Model = TypeVar("Model", bound=TaskConfig)
Table = dict[str, Any]


@dataclass(frozen=True)
class TensorMap:
    """It pairs one tensor of ours with those that hold the same numbers over there; here that is one, as it is."""

    ours: str
    """Such as `layer_00.attention.qkv.linear.weight`."""
    theirs: tuple[str, ...]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """It returns theirs of ours."""
        return (tensor,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """It returns ours of theirs."""
        (tensor,) = parts
        return tensor

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """It returns the shapes of theirs for that of ours."""
        return [tuple(part.shape) for part in self.split(torch.empty(tuple(shape), device="meta"))]


@dataclass(frozen=True)
class Transposed(TensorMap):
    """Over there inputs are rows."""

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor.mT,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        (tensor,) = parts
        return tensor.mT


@dataclass(frozen=True)
class Unstacked(TensorMap):
    """Matrices that are stacked by rows here are tensors of their own over there."""

    rows: tuple[int, ...]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.split(self.rows)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(parts))


@dataclass(frozen=True)
class ByHead(TensorMap):
    """Over there each head has its query, key and value together; here all queries come first, then keys and values."""

    heads: int

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor.unflatten(0, (3, self.heads, -1)).transpose(0, 1).flatten(0, 2),)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        (tensor,) = parts
        return tensor.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2)


class Architecture(ABC, Generic[Model]):
    """It says how models of a task are written as one architecture of `transformers`, and read from it.

    `data` is the task's own [data] section throughout.
    """

    name: ClassVar[str]
    """Such as `GPT-2`."""
    model_type: ClassVar[str]
    """What `config.json` says of it."""
    pipeline_tag: ClassVar[str]
    """What Hugging Face calls the use of such models."""
    auto_class: ClassVar[str]
    """The class of `transformers` that finds the right one, such as `AutoModelForCausalLM`."""
    has_biases: ClassVar[bool]
    """Its layers have biases whatever `config.json` says; for a model without any they are zero."""

    @abstractmethod
    def obstacles(self, model: Model) -> Iterator[Problem]:
        """It yields the keys that the architecture has no place for; of a model that it holds there are none."""

    @abstractmethod
    def documents(
        self, model: Model, data: Any, dtype: torch.dtype, companions: Mapping[str, bytes]
    ) -> dict[str, Table]:
        """It returns what is to lie beside the tensors, JSON-able, by the names of the files.

        `companions` are the files that the model is used with (`Source.companions` of its data). Raises DataError where
        one is missing, or cannot be converted.
        """

    @abstractmethod
    def tensors(self, model: Model) -> list[TensorMap]:
        """It pairs the tensors of a model, which is dense and has biases where the architecture has them.

        A layer that is tied to another one has none; of it the pair says where a file may have the other's once more.
        """

    @abstractmethod
    def sections(self, settings: Table) -> Table:
        """It returns what `config.json` says as keys of our sections, as TOML would have them.

        Raises ConfigurationError, which names every key of it that stands in the way.
        """

    @abstractmethod
    def canonical(self, name: str) -> str | None:
        """It returns the name that `tensors` has for a tensor of a file; None: it is no weight, and is left out."""


def obstacle(architecture: str, key: str, needed: Any, found: Any) -> Problem:
    """It says that an architecture needs another value of a key than the model has."""
    return Problem(f"model.{key}", f"{architecture} needs {_toml(needed)}", value=_toml(found))


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
    return str(value)


def flattened(table: Mapping[str, Any], prefix: str = "") -> Table:
    """It returns a table by dotted keys."""
    flat: Table = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def nested(flat: Mapping[str, Any]) -> Table:
    """It returns the table that `flattened` was given. Raises ValueError where a key has a value and keys below it."""
    table: Table = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        place: Any = table
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f"{name}: {parent} is a value, not a section")
        if isinstance(place.get(leaf), dict):
            raise ValueError(f"{name}: is a section, not a value")
        place[leaf] = value
    return table
