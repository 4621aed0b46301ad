"""A sealed checkpoint is written anew for another layout, without its ranks: one tensor at a time is in memory."""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

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
from pretrain.checkpoint.saved_tensors import Cut, SavedTensors
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
    state = read_rank_state(source.folder, 0)
    companions = {name: source.companion(name) for name in companions_of(source.manifest)}
    companions[CONFIG] = dump_config(config).encode()
    files: dict[str, FileRecord] = {}
    for rank in range(layout.tensor * layout.pipeline * layout.data):
        paths = [write_share(source.tensors, config.model.outline(config.data), layout, rank, folder)]
        paths.append(write_rank_state(folder, rank, RankState(state.data, state.watchdog, {}, state.scalars)))
        if rank == 0:
            paths += [write_companion(folder / name, text) for name, text in companions.items()]
        files |= described(paths, rank)
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


def write_share(
    saved: SavedTensors, outline: Outline, layout: CheckpointLayout, rank: int, folder: Path
) -> Path:
    """It writes what one rank of a layout would, give or take who of several writes what all of them have."""
    tensor = rank % layout.tensor
    tensors = {
        key_of(name, kind): (name, kind, share_shape(outline.tensors[name], layout.tensor))
        for name in names_of(outline, layout, rank)
        for kind in saved.kinds(name)
    }
    entries = {
        key: TensorEntry(saved.dtype(name, kind), shape) for key, (name, kind, shape) in tensors.items()
    }
    path = folder / tensor_file(rank)
    with TensorFileWriter(path, entries) as file:
        for key, (name, kind, shape) in tensors.items():
            cut = outline.tensors[name]
            flat = saved.read_share(name, kind, cut, tensor, layout.tensor, 0, prod(shape))
            file.write(key, flat.view(shape))
    return path


def names_of(outline: Outline, layout: CheckpointLayout, rank: int) -> list[str]:
    """It returns the tensors that a rank writes: of its stage, those that its data-parallel ranks share out."""
    tensor, data = rank % layout.tensor, rank // layout.tensor % layout.data
    stage, boundaries = rank // layout.tensor // layout.data, outline.partition(layout.pipeline)
    held = [
        f"{layer.name}.{size.name}"
        for layer in outline.layers[boundaries[stage] : boundaries[stage + 1]]
        for size in layer.tensors
        if size.sharded is not None or tensor == 0
    ]
    return held[data :: layout.data]


def share_shape(cut: Cut, size: int) -> tuple[int, ...]:
    """It returns the shape of what one of `size` tensor-parallel ranks holds of a tensor."""
    return tuple(n // size if dimension == cut.sharded else n for dimension, n in enumerate(cut.shape))
