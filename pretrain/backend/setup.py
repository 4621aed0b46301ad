"""DeepSpeed, tamed: how its engines are made, and its faults that are absorbed here (seen in 0.19.8).

Everything that DeepSpeed prints on its own goes to its logger's debug level: the journal is the one voice of a run.
"""

import contextlib
import copyreg
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import LayerSpec as DeepSpeedLayerSpec
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import logger
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec, SequentialLayers
from pretrain.backend.host_copy import HostCopies
from pretrain.backend.state_file import write_state

# Of updates that we withhold, finite ones too (0.19.8 has no other way to skip a step); the journal tells why.
logger.addFilter(lambda record: "OVERFLOW! Skipping step" not in record.getMessage())

Objective = Callable[[Any, tuple[Tensor, ...]], Tensor]


class MeshAsMpu:
    """The mesh under the names that DeepSpeed asks a Megatron `mpu` for, for engines without pipeline."""

    def __init__(self, mesh: ParallelMesh) -> None:
        self._mesh = mesh

    def get_model_parallel_rank(self) -> int:
        return self._mesh.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.tensor.size

    def get_model_parallel_group(self) -> ProcessGroup:
        return self._mesh.tensor.group

    def get_data_parallel_rank(self) -> int:
        return self._mesh.data.rank

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.data.size

    def get_data_parallel_group(self) -> ProcessGroup:
        return self._mesh.data.group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return list(self._mesh.data.ranks)


class PlannedPipeline(PipelineModule):
    """A PipelineModule whose stages begin where we say (`boundaries`, one more than there are stages)."""

    def __init__(self, *args: Any, boundaries: Sequence[int], **kwargs: Any) -> None:
        self._boundaries = list(boundaries)
        super().__init__(*args, **kwargs)

    def _partition_layers(self, method: str = "planned") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = self._boundaries
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


class GuardedCheckpointEngine(TorchCheckpointEngine):
    """Writes and reads checkpoint files so that no rank hangs and nothing foreign runs.

    - Files may be put off: what they are to hold is copied, for a thread to write while training goes on.
    - A failing write is remembered in `failure` instead of raised: `save_checkpoint` has barriers ahead, where the
      other ranks would wait for the one that raised until the collective times out.
    - Files are read with `weights_only=True` and the four classes that DeepSpeed pickles; its own engine
      unpickles anything (deepspeedai/DeepSpeed#6751).
    - The ZeRO stage is written as a call of its class: members of an Enum pickle as `getattr` under some Pythons
      (seen in 3.11.2), which `weights_only` must refuse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.zipfile_serialization = True
        copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
        self._copies: HostCopies | None = None
        self.written: list[Path] = []
        self.deferred: dict[Path, object] = {}
        self.failure: Exception | None = None

    def begin(self, copies: HostCopies | None) -> None:
        """Forget the last save. With `copies` the files of this one are put off, as far as there is memory for it."""
        self._copies = copies
        self.written, self.deferred, self.failure = [], {}, None

    def save(self, state_dict: object, path: str) -> None:
        file = Path(path)
        try:
            if self._copies and (copy := self._copies.take(file.name, state_dict)) is not None:
                self.deferred[file] = copy
            else:
                write_state(state_dict, file)
                self.written.append(file)
        except (OSError, RuntimeError) as error:
            self.failure = self.failure or error

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failure = self.failure or error

    def load(self, path: str, map_location: object = None) -> object:
        return load_plain(Path(path), mmap=False)


def load_plain(path: Path, *, mmap: bool = True) -> object:
    """Read a checkpoint file of tensors, plain values and the classes that DeepSpeed pickles; refuse all else."""
    safe = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(safe):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what DeepSpeed prints to its logger, at debug level, and keep its logger to warnings."""
    logger.setLevel(logging.WARNING)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logger.debug(line)


def silence_known_warnings() -> None:
    """Warnings that DeepSpeed causes and whoever trains can do nothing about."""
    # It calls collectives by names that torch 2.13 is about to rename.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # PipelineModule broadcasts tied weights without no_grad, at start and after a load.
    warnings.filterwarnings("ignore", r"c10d::broadcast_: an autograd kernel was not registered", UserWarning)


def join_deepspeed(timeout: timedelta) -> None:
    """Have DeepSpeed wrap the torch.distributed world that the mesh has joined.

    It makes its groups with torch's own timeout, half an hour for gloo: in one of them, such as that of tied weights,
    a rank would wait so long for a host that was cut off. They get ours.

    On CPUs it would compile a shared-memory op first, which only its inference uses (0.19.8): half a minute at the
    first start of a machine, and when that is killed, a lock stays behind for which every later start waits forever.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with quiet():
        deepspeed.init_distributed(dist_init_required=False)
    deepspeed.comm.comm.cdb.new_group = partial(torch.distributed.new_group, timeout=timeout)


def build_module(
    specs: Sequence[LayerSpec], boundaries: Sequence[int], mesh: ParallelMesh, objective: Objective
) -> nn.Module:
    """The layers of this rank: all of them in order, or under pipeline parallelism those of its stage."""
    silence_known_warnings()
    join_deepspeed(mesh.timeout)
    if mesh.pipeline.size == 1:
        return SequentialLayers(specs)
    topology = PipeModelDataParallelTopology(
        num_pp=mesh.pipeline.size, num_mp=mesh.tensor.size, num_dp=mesh.data.size
    )
    with quiet():
        module: nn.Module = PlannedPipeline(
            [_for_deepspeed(spec) for spec in specs],
            topology=topology,
            loss_fn=objective,
            boundaries=boundaries,
        )
    return module


def local_layers(module: nn.Module) -> list[tuple[int, nn.Module]]:
    """The layers of this rank with their index in the whole list."""
    if isinstance(module, PipelineModule):
        return list(enumerate(module.forward_funcs, start=module._local_start))
    assert isinstance(module, SequentialLayers)
    return list(enumerate(module.layers))


def gathered(parameters: Sequence[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
    """Within it, parameters that ZeRO-3 divides are whole on every data rank, to be read."""
    context: contextlib.AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(parameters))
    return context


def _for_deepspeed(spec: LayerSpec) -> DeepSpeedLayerSpec:
    if spec.tie is None:
        return DeepSpeedLayerSpec(spec.module, **spec.arguments)
    # Each stage builds the module of its own end (embedding or head) under the common key; DeepSpeed
    # broadcasts the first one's weight at start and sums the gradients of both before the update.
    return TiedLayerSpec(spec.tie, spec.module, **spec.arguments)


def initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], mesh: ParallelMesh
) -> DeepSpeedEngine:
    """A DeepSpeed engine (PipelineEngine for a PipelineModule) with checkpoint files guarded."""
    # deepspeed.utils.groups keeps the mpu in a global: without one, an engine would inherit its predecessor's.
    mpu = None if isinstance(module, PipelineModule) else MeshAsMpu(mesh)
    with quiet():
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=dict(settings),
            mpu=mpu,
            dist_init_required=False,
        )
        engine.checkpoint_engine = GuardedCheckpointEngine()
        # With ZeRO it copies a script beside every checkpoint, on rank 0 alone and unguarded against a full disk.
        engine._copy_recovery_script = lambda path: None
    # Some wrappers (FP16_UnfusedOptimizer, chosen for bf16 with ZeRO-0) warm up with a step over zero gradients,
    # which would shift Adam's bias correction by one.
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)  # where apex counts
    return engine
