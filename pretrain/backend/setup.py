"""DeepSpeed's engines are made here, and its faults in doing so are absorbed (seen in 0.19.8)."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import LayerSpec as DeepSpeedLayerSpec
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parallel.mesh import ParallelMesh
from parallel.pipeline import Activation, LayerSpec, SequentialLayers
from parallel.uncompiled import uncompiled
from pretrain.backend.quiet import quiet, silence_known_warnings
from pretrain.backend.whole_update import update_at_once
from pretrain.models.blocks import ResidualBlock
from pretrain.tasks.task import Objective

with uncompiled(), contextlib.suppress(ImportError):
    # ZeRO-1 and 2 would import it at their first step, whatever the optimizer.
    import deepspeed.runtime.zero.muon.original_muon

_OF_EVALUATION = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "bf16",
    "steps_per_print",
)
"""The settings that an engine without an optimizer needs."""


class MeshAsMpu:
    """It shows the mesh under the names that DeepSpeed asks a Megatron `mpu` for, to engines without pipeline."""

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
    """The stages of this PipelineModule begin where we say (`boundaries`, one more than there are stages)."""

    def __init__(self, *args: Any, boundaries: Sequence[int], **kwargs: Any) -> None:
        self._boundaries = list(boundaries)
        self._sharing: dict[int, str] = {}
        """Layers of this stage whose `weight` an earlier one of it has, with the key of their tie."""
        super().__init__(*args, **kwargs)
        for index, key in self._sharing.items():
            self.forward_funcs[index - self._local_start].weight = self.tied_modules[key].weight

    def forward(self, forward_input: Activation) -> Activation:
        """It runs the layers of this stage. What they hand on becomes contiguous: stages send memory as it lies."""
        outputs: Activation = super().forward(forward_input)
        return (
            outputs.contiguous()
            if isinstance(outputs, Tensor)
            else tuple(output.contiguous() for output in outputs)
        )

    def _partition_layers(self, method: str = "planned") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = self._boundaries
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])
        self._tell_apart()

    def _tell_apart(self) -> None:
        """Of tied layers on one stage DeepSpeed builds the first and calls it in place of the others, a head's, too
        (0.19.8). The others become layers of their own, which get the first one's weight."""
        keys: set[str] = set()
        for index in range(self._local_start, self._local_stop):
            spec = self._layer_specs[index]
            if not isinstance(spec, TiedLayerSpec):
                continue
            if spec.key in keys:
                self._sharing[index] = spec.key
                self._layer_specs[index] = DeepSpeedLayerSpec(
                    spec.typename, *spec.module_args, **spec.module_kwargs
                )
            keys.add(spec.key)


def join_deepspeed(timeout: timedelta) -> None:
    """It has DeepSpeed wrap the torch.distributed world that the mesh has joined.

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
    """It builds the layers of this rank: all of them in order, or under pipeline parallelism those of its stage."""
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


def _for_deepspeed(spec: LayerSpec) -> DeepSpeedLayerSpec:
    if spec.tie is None:
        return DeepSpeedLayerSpec(spec.module, **spec.arguments)
    # Each stage builds the module of its own end (embedding or head) under the common key; DeepSpeed
    # broadcasts the first one's weight at start and sums the gradients of both before the update.
    return TiedLayerSpec(spec.tie, spec.module, **spec.arguments)


def local_layers(module: nn.Module) -> list[tuple[int, nn.Module]]:
    """It lists the layers of this rank with their index in the whole list."""
    if isinstance(module, PipelineModule):
        return list(enumerate(module.forward_funcs, start=module._local_start))
    assert isinstance(module, SequentialLayers)
    return list(enumerate(module.layers))


def gathered(parameters: Sequence[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
    """Within it, parameters that ZeRO-3 divides are whole on every data rank, to be read."""
    context: contextlib.AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(parameters))
    return context


def initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], mesh: ParallelMesh
) -> DeepSpeedEngine:
    """It makes a DeepSpeed engine, a PipelineEngine for a PipelineModule."""
    engine = _initialize(module, optimizer, settings, mesh)
    # Some wrappers (FP16_UnfusedOptimizer, chosen for bf16 with ZeRO-0) warm up with a step over zero gradients,
    # which would shift Adam's bias correction by one.
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)  # where apex counts
    update_at_once(engine, mesh)
    return engine


def initialize_without_optimizer(
    module: nn.Module, settings: Mapping[str, Any], mesh: ParallelMesh
) -> DeepSpeedEngine:
    """It makes an engine that runs forward alone: it holds weights, whole on every data rank, and nothing else."""
    needed = {name: settings[name] for name in _OF_EVALUATION if name in settings}
    return _initialize(module, None, {**needed, "zero_optimization": {"stage": 0}}, mesh)


def _initialize(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    settings: Mapping[str, Any],
    mesh: ParallelMesh,
) -> DeepSpeedEngine:
    # deepspeed.utils.groups keeps the mpu in a global: without one, an engine would inherit its predecessor's.
    mpu = None if isinstance(module, PipelineModule) else MeshAsMpu(mesh)
    for part in module.modules():
        if isinstance(part, ResidualBlock) and part.compiler:
            # ZeRO-3 gathers the weights of what is compiled as one; its hooks inside would be in the way.
            set_z3_leaf_module(part, True)
    with quiet():
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=dict(settings),
            mpu=mpu,
            dist_init_required=False,
        )
    return engine
