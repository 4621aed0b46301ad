"""A sealed checkpoint is written anew for another layout, without its ranks: one tensor at a time is in memory."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from data_pipeline.shown import shown
from pretrain.checkpoint.certificate import certify
from pretrain.checkpoint.compatibility import architecture_of, tensor_records
from pretrain.checkpoint.manifest import CheckpointLayout, FileRecord, Manifest, seal
from pretrain.checkpoint.rank_files import (
    RankState,
    described,
    read_rank_state,
    tensor_file,
    write_companion,
    write_rank_state,
)
from pretrain.checkpoint.saved_tensors import Cut, SavedTensors, read_from
from pretrain.checkpoint.sealed import SealedCheckpoint
from pretrain.checkpoint.tensor_file import TensorEntry, TensorFileWriter
from pretrain.config.loader import dump_config
from pretrain.config.run import RunConfig
from pretrain.models.named import key_of
from pretrain.models.outline import Outline
from pretrain.run_folder import CONFIG


def convert(source: SealedCheckpoint, config: RunConfig, data: int, checkpoints: Path) -> CheckpointLayout:
    """It writes a checkpoint of the same tag into the folder `checkpoints`, for the layout of a configuration with so
    many data-parallel ranks, sealed, and certified if the source is. It returns that layout.

    Raises:
        OSError: the disk is full, or refuses.
        CheckpointError: the source is not what its manifest says.
    """
    layout = layout_of(config, data)
    folder = checkpoints / source.manifest.tag
    folder.mkdir(parents=True)
    with read_from(source.folder):
        state = read_rank_state(source.folder, 0)
    companions = {name: source.companion(name) for name in companions_of(source.manifest)}
    companions[CONFIG] = dump_config(config).encode()
    files: dict[str, FileRecord] = {}
    for first in range(0, layout.tensor * layout.pipeline * layout.data, layout.tensor):
        shares = write_shares(source.tensors, config.model.outline(config.data), layout, first, folder)
        for rank, path in enumerate(shares, start=first):
            own = RankState(state.data, state.watchdog, {}, state.scalars)
            files |= described([path, write_rank_state(folder, rank, own)], rank)
    files |= described([write_companion(folder / name, text) for name, text in companions.items()], 0)
    seal(folder, converted_manifest(source, config, layout, files))
    if certificate := source.certificate:
        certify(folder, step=certificate.step, horizon=certificate.horizon)
    return layout


def layout_of(config: RunConfig, data: int) -> CheckpointLayout:
    """It returns the layout of a configuration on so many data-parallel ranks."""
    return CheckpointLayout(
        tensor=config.parallel.tensor,
        pipeline=config.parallel.pipeline,
        data=data,
        zero_stage=config.parallel.zero_stage,
        dtype=config.precision.dtype,
    )


def companions_of(manifest: Manifest) -> Iterator[str]:
    """It yields the files of a checkpoint that no rank has for itself, such as the tokenizer."""
    for name, record in manifest.files.items():
        if record.rank == 0 and not name.startswith(("state_", "rank_")):
            yield name


def converted_manifest(
    source: SealedCheckpoint, config: RunConfig, layout: CheckpointLayout, files: Mapping[str, FileRecord]
) -> Manifest:
    """It returns the manifest of a checkpoint that was written anew: it says where it comes from."""
    changed = {
        "layout": layout,
        "config_digest": architecture_of(config),
        "files": dict(files),
        "tensors": tensor_records(config.model.outline(config.data)),
        "checksums": (),
        "converted_from": f"{shown(source.folder)}: {in_words(source.manifest.layout)}",
    }
    return Manifest.model_validate({**source.manifest.__dict__, **changed})


def in_words(layout: CheckpointLayout) -> str:
    """It returns a layout in words, such as `tensor 2 x pipeline 1 x data 4, ZeRO 1, bf16`."""
    ranks = f"tensor {layout.tensor} x pipeline {layout.pipeline} x data {layout.data}"
    return f"{ranks}, ZeRO {layout.zero_stage}, {layout.dtype}"


def write_shares(
    saved: SavedTensors, outline: Outline, layout: CheckpointLayout, first: int, folder: Path
) -> list[Path]:
    """It writes what the tensor-parallel ranks from `first` on would, give or take who of several writes what all of
    them have: each tensor is read once."""
    paths = [folder / tensor_file(rank) for rank in range(first, first + layout.tensor)]
    tensors = [
        Share(name, kind, outline.tensors[name], layout.tensor)
        for name in names_of(outline, layout, first)
        for kind in saved.kinds(name)
    ]
    with ExitStack() as stack:
        files = []
        for rank, path in enumerate(paths):
            held = [one for one in tensors if one.is_of(rank)]
            entries = {one.key: TensorEntry(saved.dtype(one.name, one.kind), one.shape) for one in held}
            files.append(stack.enter_context(TensorFileWriter(path, entries)))
        for one in tensors:
            for rank, file in enumerate(files):
                if one.is_of(rank):
                    file.write(one.key, one.read(saved, rank))
    return paths


@dataclass(frozen=True)
class Share:
    """It is what each of `size` tensor-parallel ranks holds of a tensor."""

    name: str
    kind: str
    cut: Cut
    size: int

    @property
    def key(self) -> str:
        """This is what it is called in a file."""
        return key_of(self.name, self.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """It is the same on every rank."""
        cut = self.cut
        return tuple(n // self.size if axis == cut.sharded else n for axis, n in enumerate(cut.shape))

    def is_of(self, rank: int) -> bool:
        """It tells whether a rank writes it: of copies the first one does."""
        return rank == 0 or self.cut.sharded is not None

    def read(self, saved: SavedTensors, rank: int) -> Tensor:
        """It returns the share of a rank. It raises what `SavedTensors.read_share` does."""
        flat = saved.read_share(self.name, self.kind, self.cut, rank, self.size, 0, prod(self.shape))
        return flat.view(self.shape)


def names_of(outline: Outline, layout: CheckpointLayout, rank: int) -> list[str]:
    """It returns the tensors of a rank's stage that its tensor-parallel group writes: data-parallel ones share out
    all."""
    data, stage = rank // layout.tensor % layout.data, rank // layout.tensor // layout.data
    boundaries = outline.partition(layout.pipeline)
    held = [
        f"{layer.name}.{size.name}"
        for layer in outline.layers[boundaries[stage] : boundaries[stage + 1]]
        for size in layer.tensors
    ]
    return held[data :: layout.data]
