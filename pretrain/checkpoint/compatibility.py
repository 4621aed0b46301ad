"""This module says what a checkpoint must agree with before it is loaded into a run."""

import hashlib
import json
from dataclasses import dataclass

from parallel.mesh import ParallelMesh
from pretrain.checkpoint.manifest import CheckpointLayout, Manifest
from pretrain.config.run import RunConfig
from pretrain.optim.config import OPTIMIZERS
from pretrain.section import kind_of


@dataclass(frozen=True)
class Compatibility:
    """It holds what a checkpoint must agree with before it is loaded."""

    layout: CheckpointLayout
    architecture: str
    """Digest of the model's shape."""
    data_fingerprint: str
    optimizer: str
    """Its kind: the state of one means nothing to another."""

    @classmethod
    def of(cls, config: RunConfig, mesh: ParallelMesh, data_fingerprint: str) -> "Compatibility":
        shape = json.dumps(config.model.shape(config.data), sort_keys=True)
        return cls(
            layout=CheckpointLayout(
                tensor=mesh.tensor.size,
                pipeline=mesh.pipeline.size,
                data=mesh.data.size,
                zero_stage=config.parallel.zero_stage,
                dtype=config.precision.dtype,
            ),
            architecture=hashlib.sha256(shape.encode()).hexdigest(),
            data_fingerprint=data_fingerprint,
            optimizer=config.optimizer.kind,
        )

    def reason(self, manifest: Manifest) -> str:
        """It says why a checkpoint, named by its tag, cannot be loaded into this run; empty if it can."""
        if manifest.layout != self.layout:
            theirs, ours = manifest.layout.model_dump(), self.layout.model_dump()
            changed = [f"{key} {theirs[key]} -> {ours[key]}" for key in ours if theirs[key] != ours[key]]
            return (
                f"was saved in another layout ({', '.join(changed)}); resume with the layout it was saved in: "
                "conversion between layouts is not supported yet"
            )
        if manifest.config_digest != self.architecture:
            return (
                "holds another model; restore [model] and the lengths in [data] as they were, or choose another "
                "run.name"
            )
        held = manifest.optimizer or kind_of(OPTIMIZERS[0])
        if held != self.optimizer:
            return f"holds the state of another optimizer, {held}; restore optimizer.kind, or choose another run.name"
        if manifest.data_fingerprint != self.data_fingerprint:
            return (
                "belongs to other data or another tokenizer than the run's, so its data position means nothing; "
                "restore data.sources, or choose another run.name"
            )
        return ""
