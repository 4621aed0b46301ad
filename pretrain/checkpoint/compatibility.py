"""This module says what a checkpoint must agree with before it is loaded into a run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from parallel.mesh import ParallelMesh
from pretrain.checkpoint.manifest import CheckpointLayout, Manifest, TensorRecord
from pretrain.config.run import RunConfig
from pretrain.models.outline import Outline


@dataclass(frozen=True)
class Compatibility:
    """It holds what a checkpoint must agree with before it is loaded, and says of itself when it is written."""

    layout: CheckpointLayout
    converts: bool
    """Checkpoints of other layouts are converted; else they are refused."""
    outline: Outline
    architecture: str
    """Digest of the model's shape."""
    data_fingerprint: str
    optimizer: str
    """Its kind: the state of one means nothing to another."""
    changes: str = ""
    """Settings that the run has not had before, in words."""

    @classmethod
    def of(
        cls, config: RunConfig, mesh: ParallelMesh, data_fingerprint: str, changes: str = ""
    ) -> "Compatibility":
        return cls(
            layout=CheckpointLayout(
                tensor=mesh.tensor.size,
                pipeline=mesh.pipeline.size,
                data=mesh.data.size,
                zero_stage=config.parallel.zero_stage,
                dtype=config.precision.dtype,
            ),
            converts=config.checkpoint.on_other_layout == "convert",
            outline=config.model.outline(config.data),
            architecture=architecture_of(config),
            data_fingerprint=data_fingerprint,
            optimizer=config.optimizer.kind,
            changes=changes,
        )

    @cached_property
    def tensors(self) -> dict[str, TensorRecord]:
        """This is what manifests say of the tensors of the model."""
        return tensor_records(self.outline)

    def reason(self, manifest: Manifest) -> str:
        """It says why a checkpoint, named by its tag, cannot be loaded into this run; empty if it can."""
        found = self._reason(manifest)
        return f"{found} (changed: {self.changes})" if found and self.changes else found

    def _reason(self, manifest: Manifest) -> str:
        if manifest.config_digest != self.architecture or shapes(manifest.tensors) != shapes(self.tensors):
            return (
                "holds another model; restore [model] and the lengths in [data] as they were, or choose another "
                "run.name"
            )
        if manifest.optimizer != self.optimizer:
            return (
                f"holds the state of another optimizer, {manifest.optimizer}; restore optimizer.kind, or choose "
                "another run.name"
            )
        if manifest.data_fingerprint != self.data_fingerprint:
            return (
                "belongs to other data than the run's, or to another order of it, so its data position means nothing; "
                "restore what [data] reads and how, or choose another run.name"
            )
        if not self.converts and (differences := self.differences(manifest)):
            return (
                f"was saved in another layout ({differences}), and "
                'checkpoint.on_other_layout = "refuse"; "convert" takes it, and so does `surefoot convert`'
            )
        return ""

    def differences(self, manifest: Manifest) -> str:
        """It says in what the layout of a checkpoint differs from the run's, such as `tensor 2 -> 1`; empty: in
        nothing."""
        theirs, ours = manifest.layout.model_dump(), self.layout.model_dump()
        found = [f"{key} {theirs[key]} -> {ours[key]}" for key in ours if theirs[key] != ours[key]]
        if not found and manifest.tensors != self.tensors:
            found = ["shares of tensor-parallel ranks"]
        return ", ".join(found)


def architecture_of(config: RunConfig) -> str:
    """It returns the digest of what a checkpoint of a model must agree with."""
    shape = json.dumps(config.model.shape(config.data), sort_keys=True)
    return hashlib.sha256(shape.encode()).hexdigest()


def shapes(tensors: Mapping[str, TensorRecord]) -> dict[str, tuple[int, ...]]:
    """It returns the shapes of tensors by their names."""
    return {name: record.shape for name, record in tensors.items()}


def tensor_records(outline: Outline) -> dict[str, TensorRecord]:
    """It returns what a manifest says of the tensors of a model."""
    return {
        name: TensorRecord(shape=size.shape, sharded=size.sharded, stacked=size.stacked)
        for name, size in outline.tensors.items()
    }
