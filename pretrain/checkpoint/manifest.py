"""MANIFEST.json says what a checkpoint is, and names every byte that belongs to it.

It is written last. A folder without it is not a checkpoint, and nothing of a checkpoint is unpickled before
its files have been compared with it.
"""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from data_pipeline.files import open_regular, replace_file, sha256_of
from data_pipeline.parsing import Digest, parse_json, parsed_as, read_whole
from data_pipeline.shown import shown
from pretrain.checkpoint.tag import Tag
from pretrain.errors import CheckpointError
from pretrain.step import TrainState

MANIFEST = "MANIFEST.json"
LIBRARIES = ("torch", "deepspeed", "megatron-core")
"""Whose versions a checkpoint names."""

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$")]
AnyDocument = TypeVar("AnyDocument", bound="Document")
Ranks = Annotated[int, Field(gt=0, lt=2**31)]


class Document(BaseModel):
    """A document is written beside a checkpoint's files, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class FileRecord(Document):
    """It describes one file of a checkpoint."""

    size: int = Field(ge=0)
    """Bytes."""
    sha256: Digest
    rank: int = Field(ge=0)
    """The rank that wrote it."""


class TensorRecord(Document):
    """It describes a weight or a buffer of the whole model, and how tensor-parallel ranks divide it."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    sharded: int | None = None
    """Dimension along which they divide it; none: they have copies."""
    stacked: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Lengths of what is stacked along that dimension, such as the rows of queries, keys and values; every rank has its
    share of each. Empty: it is one."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """It refuses a dimension that is not there, and a stack that is longer or shorter than it."""
        if self.sharded is not None and not 0 <= self.sharded < len(self.shape):
            raise ValueError(f"sharded: there is no dimension {self.sharded}")
        length = self.shape[self.sharded or 0] if self.shape else 0
        if self.stacked and sum(self.stacked) != length:
            raise ValueError("stacked: the lengths do not add up to that of the dimension")
        return self


class CheckpointLayout(Document):
    """It says on which ranks a checkpoint was saved."""

    tensor: Ranks
    pipeline: Ranks
    data: Ranks
    """Data-parallel ranks."""
    zero_stage: int
    dtype: str


FORMAT: Final = 2


class Manifest(Document):
    """It describes a complete checkpoint."""

    format: Literal[2] = FORMAT
    tag: str
    layout: CheckpointLayout
    config_digest: str
    """Digest of the resolved configuration."""
    data_fingerprint: str
    """Fingerprint of the data and its tokenizer: what the data position in the checkpoint refers to."""
    optimizer: str
    """Kind of the optimizer whose state it holds."""
    run_id: str
    """The run that wrote it."""
    state: TrainState
    files: dict[FileName, FileRecord]
    tensors: dict[str, TensorRecord]
    """All weights and buffers by their names in the whole model, in its order."""
    versions: dict[str, str]
    """Library -> version."""
    checksums: tuple[int, ...] = ()
    """By rank, of the bits of weights and optimizer that it held; empty where no run saved it, but a conversion."""
    converted_from: str = ""
    """Tag and layout of the checkpoint that it was converted from, if it was."""

    @model_validator(mode="after")
    def _is_of_all_ranks(self) -> Self:
        """It refuses checksums and files of other ranks than there were: a rank would look for its own in vain."""
        ranks = self.layout.tensor * self.layout.pipeline * self.layout.data
        if self.checksums and len(self.checksums) != ranks:
            raise ValueError(f"checksums: there are {len(self.checksums)}, of {ranks} ranks")
        if any(record.rank >= ranks for record in self.files.values()):
            raise ValueError(f"files: one was written by a rank that is none of {ranks}")
        return self

    @model_validator(mode="after")
    def _tensors_divide(self) -> Self:
        """It refuses tensors that so many tensor-parallel ranks cannot have divided."""
        for name, cut in self.tensors.items():
            lengths = cut.stacked or (cut.shape[cut.sharded],) if cut.sharded is not None else ()
            if any(length % self.layout.tensor for length in lengths):
                raise ValueError(f"tensors: {shown(name)} is not divided by {self.layout.tensor} ranks")
        return self

    @model_validator(mode="after")
    def _state_can_be(self) -> Self:
        """It refuses counters that no run has, and those of another step than the tag's: a run would go on from them,
        and write them into its ledger."""
        counts = asdict(self.state)
        if not isfinite(loss := counts.pop("best_loss")):
            raise ValueError(f"state.best_loss is {loss}, which is the lowest of no losses")
        for name, count in counts.items():
            if not 0 <= count < 2**53:
                raise ValueError(f"state.{name} is {count}, which no run counts to")
        tag = Tag.parse(self.tag)
        if tag and tag.step != self.state.step:
            raise ValueError(f"state.step is {self.state.step}, but {self.tag} is of step {tag.step}")
        return self

    @property
    def total_bytes(self) -> int:
        return sum(record.size for record in self.files.values())


def seal(folder: Path, manifest: Manifest) -> None:
    """It makes the folder a checkpoint; it is called once, after all ranks have described their files.

    Raises CheckpointError if a file is missing or has another size.
    """
    if folder.name != manifest.tag:
        raise CheckpointError(f"{folder}: a manifest for {manifest.tag} cannot seal this folder")
    problems = [
        problem for name, record in manifest.files.items() if (problem := size_problem(folder / name, record))
    ]
    if problems:
        raise CheckpointError("; ".join(problems))
    replace_file(folder / MANIFEST, manifest.model_dump_json(indent=1))


def read_manifest(folder: Path) -> Manifest:
    """It reads a manifest; raises CheckpointError if it is missing, not understood, or belongs to another folder."""
    manifest = parse_document(folder / MANIFEST, read_text(folder / MANIFEST), Manifest)
    if manifest.tag != folder.name:
        raise CheckpointError(f"{folder / MANIFEST}: this is the manifest of {shown(manifest.tag)}")
    return manifest


def other_format(folder: Path) -> str:
    """It says so if a manifest is of another version's format: its checkpoint may be sound, and is none of ours to
    judge. Empty if it is of ours, or cannot be read.
    """
    try:
        with parsed_as(CheckpointError, folder / MANIFEST):
            found = parse_json(read_text(folder / MANIFEST)).get("format", FORMAT)
    except CheckpointError:
        return ""
    if type(found) is not int or found == FORMAT:
        return ""
    return (
        f"{shown(folder / MANIFEST)}: format {found}, and this version of Surefoot has format {FORMAT}; go on with the "
        "version that wrote it, or choose another run.name"
    )


def read_text(path: Path) -> bytes:
    """It returns the bytes of a document; raises CheckpointError if it is missing, too large, or no regular file."""
    try:
        return read_whole(path, follow=False)
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: {error.strerror}") from error


def parse_document(path: Path, text: bytes, kind: type[AnyDocument]) -> AnyDocument:
    """It returns the document in `text`, which `path` held; raises CheckpointError if it is not understood."""
    with parsed_as(CheckpointError, path):
        return kind.model_validate_json(json.dumps(parse_json(text)))


def verify(folder: Path, manifest: Manifest, names: Iterable[str], *, from_disk: bool = False) -> list[str]:
    """It returns the problems of the files with these names; empty if they are sound.

    `from_disk` has the operating system forget what it holds of a file first: memory may have what a disk has lost.
    """
    problems = [_problem(folder / name, manifest.files.get(name), from_disk) for name in names]
    return [problem for problem in problems if problem]


def _problem(path: Path, record: FileRecord | None, from_disk: bool) -> str | None:
    if record is None:
        return f"{path}: not in the manifest"
    if problem := size_problem(path, record):
        return problem
    try:
        with open_regular(path) as file:
            if from_disk:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            same = sha256_of(file) == record.sha256
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None if same else f"{path}: the content has changed since it was saved (SHA-256 differs)"


def size_problem(path: Path, record: FileRecord) -> str | None:
    """It says so if a file is missing or has another size than was saved."""
    try:
        status = path.lstat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{path}: not a regular file"
    if status.st_size != record.size:
        return f"{path}: {status.st_size} bytes, but {record.size} were saved"
    return None
