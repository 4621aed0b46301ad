"""The tensors of a checkpoint are read by their names in the whole model, whatever layout they were saved in.

What a rank holds of a tensor is its tensor-parallel share: all of it, or along one dimension its part of every matrix
that is stacked there. It has written that, or runs of elements of it, to its file; see `pretrain.backend.pieces`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data_pipeline.shown import shown
from parallel.partition import share_runs
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.tensor_file import SUFFIX, TensorFile
from pretrain.errors import CheckpointError, Unreadable
from pretrain.models.named import WEIGHT


class Cut(Protocol):
    """It tells how tensor-parallel ranks divide a tensor, as outlines and manifests have it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sharded(self) -> int | None: ...
    @property
    def stacked(self) -> tuple[int, ...]: ...


class Run(NamedTuple):
    """It is a run of elements of a share, and the tensor of a file that holds them."""

    start: int
    length: int
    file: TensorFile
    key: str


@dataclass(frozen=True)
class SavedTensors:
    """It reads the tensors of one checkpoint, whose files were compared with its manifest before."""

    folder: Path
    manifest: Manifest
    _runs: dict[tuple[str, str], dict[int, list[Run]]] = field(default_factory=dict)
    """(Name, kind) -> tensor-parallel rank -> runs of its share, in order."""
    _last: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """The tensor that was read last, since shares of one are asked for one after the other."""

    def __post_init__(self) -> None:
        """It reads the headers of all files.

        Raises:
            Unreadable: a file cannot be read.
            CheckpointError: a file is not of the format, or lacks elements.
        """
        for name, record in self.manifest.files.items():
            if name.endswith(SUFFIX):
                with read_from(self.folder / name):
                    file = TensorFile(self.folder / name)
                self._index(file, record.rank % self.manifest.layout.tensor)
        for (name, kind), shares in self._runs.items():
            self._check(name, kind, shares)
        if missing := [name for name in self.names if (name, WEIGHT) not in self._runs]:
            raise CheckpointError(f"{self.folder}: no file has {missing[0]}")

    @property
    def names(self) -> Sequence[str]:
        """These are all weights and buffers, in the order of the model."""
        return tuple(self.manifest.tensors)

    @property
    def moments(self) -> tuple[str, ...]:
        """These kinds are there beside weights: what the optimizer keeps of each; none before its first update."""
        return tuple(sorted({kind for _, kind in self._runs} - {WEIGHT}))

    def kinds(self, name: str) -> tuple[str, ...]:
        """It returns what is there of a weight or buffer: itself, and what the optimizer keeps of it."""
        return tuple(kind for kind in (WEIGHT, *self.moments) if (name, kind) in self._runs)

    def shape(self, name: str) -> tuple[int, ...]:
        """It returns the shape of a tensor, padding of the vocabulary included."""
        return self.manifest.tensors[name].shape

    def dtype(self, name: str, kind: str = WEIGHT) -> torch.dtype:
        """It returns the type of a tensor's numbers. Raises CheckpointError where there is no such tensor."""
        run = self._shares(name, kind)[0][0]
        return run.file.entries[run.key].dtype

    def read(self, name: str, kind: str = WEIGHT) -> Tensor:
        """It returns a tensor of the whole model; of weights the fp32 one that the optimizer moves.

        Raises:
            Unreadable: it cannot be read.
            CheckpointError: there is none of that name and kind.
        """
        if (name, kind) not in self._last:
            self._last.clear()
            shares = self._shares(name, kind)
            cut, size = self.manifest.tensors[name], len(shares)
            if size == 1:
                whole = self._read_share(shares[0], 0, math.prod(cut.shape)).view(cut.shape)
            else:
                whole = torch.empty(cut.shape, dtype=self.dtype(name, kind))
                for rank, runs in shares.items():
                    share = self._read_share(runs, 0, math.prod(cut.shape) // size)
                    put_share(share, whole, cut, rank, size)
            self._last[name, kind] = whole
        return self._last[name, kind]

    def read_share(
        self, name: str, kind: str, cut: Cut, rank: int, size: int, start: int, count: int
    ) -> Tensor:
        """It returns elements [start, start + count) of what one of `size` tensor-parallel ranks holds of a tensor that
        they divide as `cut` says, flat. It raises what `read` does.

        Where it was saved divided like that, no more than those elements is read. It raises CheckpointError, too, where
        the tensor has another shape.
        """
        shares, own = self._shares(name, kind), self.manifest.tensors[name]
        if cut.shape != own.shape:
            raise CheckpointError(f"{self.folder}: {name} is {own.shape}, not {cut.shape}")
        if cut.sharded is None or size == 1:
            rank, size = 0, 1
        if len(shares) == size and (size == 1 or (cut.sharded, cut.stacked) == (own.sharded, own.stacked)):
            return self._read_share(shares[rank], start, count)
        share = take_share(self.read(name, kind), cut, rank, size)
        return share.reshape(-1)[start : start + count]

    def _index(self, file: TensorFile, rank: int) -> None:
        for key, entry in file.entries.items():
            kind, _, place = key.partition("/")
            name, _, start = place.partition("@")
            if name not in self.manifest.tensors or not (start or "0").isdecimal():
                raise CheckpointError(f"{file.path}: {shown(key)} is nothing of the model")
            shares = self._runs.setdefault((name, kind), {})
            shares.setdefault(rank, []).append(Run(int(start or 0), entry.size, file, key))

    def _check(self, name: str, kind: str, shares: dict[int, list[Run]]) -> None:
        """It raises CheckpointError unless every share is there, from its first element to its last, once."""
        cut, layout = self.manifest.tensors[name], self.manifest.layout
        size = 1 if cut.sharded is None else layout.tensor
        if len(shares) == size and all(
            _is_whole(runs, math.prod(cut.shape) // size) for runs in shares.values()
        ):
            return
        raise CheckpointError(f"{self.folder}: {kind} of {name} is not there with every element once")

    def _shares(self, name: str, kind: str) -> dict[int, list[Run]]:
        if (name, kind) not in self._runs:
            raise CheckpointError(f"{self.folder}: has no {kind} of {name}")
        return self._runs[name, kind]

    def _read_share(self, runs: Sequence[Run], start: int, count: int) -> Tensor:
        """It returns elements of one share, flat."""
        parts = list(_overlapping(runs, start, start + count))
        if len(parts) == 1:
            run, first, last = parts[0]
            with read_from(run.file.path):
                return run.file.read_flat(run.key, first, last)
        found = torch.empty(count, dtype=runs[0].file.entries[runs[0].key].dtype)
        for run, first, last in parts:
            at = run.start + first - start
            with read_from(run.file.path):
                found[at : at + last - first] = run.file.read_flat(run.key, first, last)
        return found


@contextmanager
def read_from(path: Path) -> Iterator[None]:
    """It turns an OSError into Unreadable, which names the file: `path`, or one in it."""
    try:
        yield
    except OSError as error:
        raise Unreadable(f"{shown(error.filename or path)}: {error.strerror}") from error


def _is_whole(runs: list[Run], length: int) -> bool:
    """It sorts the runs of a share, and tells whether they have each of its elements once."""
    runs.sort(key=lambda run: (run.start, run.length))
    ends = [run.start + run.length for run in runs]
    return [run.start for run in runs] == [0, *ends[:-1]] and ends[-1] == length


def _overlapping(runs: Sequence[Run], start: int, stop: int) -> Iterator[tuple[Run, int, int]]:
    """It yields the runs that hold elements of [start, stop), each with its own first and last one."""
    for run in runs:
        first, last = max(start, run.start), min(stop, run.start + run.length)
        if first < last:
            yield run, first - run.start, last - run.start


def take_share(whole: Tensor, cut: Cut, rank: int, size: int) -> Tensor:
    """It returns what one of `size` tensor-parallel ranks holds of a tensor."""
    if cut.sharded is None or size == 1:
        return whole
    runs = share_runs(cut.stacked or (cut.shape[cut.sharded],), rank, size)
    return torch.cat([whole.narrow(cut.sharded, *run) for run in runs], dim=cut.sharded)


def put_share(share: Tensor, whole: Tensor, cut: Cut, rank: int, size: int) -> None:
    """It puts the elements of a share in their places."""
    assert cut.sharded is not None
    runs = share_runs(cut.stacked or (cut.shape[cut.sharded],), rank, size)
    shape = list(cut.shape)
    shape[cut.sharded] //= size
    parts = share.view(shape).split([run.length for run in runs], dim=cut.sharded)
    for run, part in zip(runs, parts, strict=True):
        whole.narrow(cut.sharded, *run).copy_(part)
