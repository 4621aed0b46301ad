"""What a run says of itself at its start and at its end."""

import shlex
import shutil
import sys
from pathlib import Path

from data_pipeline.reading.stream import ValidationSet
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.optim.registry import make_optimizer
from pretrain.plan.plan import Plan
from pretrain.run_folder import TENSORBOARD
from pretrain.runtime.kernels import Kernels
from pretrain.step import TrainState


def start_lines(config: RunConfig, layout: Plan, mesh: ParallelMesh, kernels: Kernels) -> list[str]:
    """It tells what runs, how it is spread, and on what."""
    batch, ascent = layout.batch, config.optimizer.sharpness_aware
    lines = [
        f"{config.run.name}: {config.model.kind}, {layout.parameters.total / 1e6:.1f} M parameters, "
        f"{config.precision.dtype}, seed {config.run.seed}",
        f"{mesh.world_size} x {mesh.device_name}: tensor {layout.tensor} x pipeline {layout.pipeline} x data "
        f"{layout.data}, ZeRO-{layout.zero_stage}; batch {batch.micro} x {batch.accumulation} x {batch.data} = "
        f"{batch.samples} samples, {batch.tokens:,} tokens",
        f"kernels: {make_optimizer(config.optimizer).description}, {kernels.description}",
    ]
    if layout.sharpness_aware_steps:
        lines.append(
            f"{'adaptive ' if ascent.adaptive else ''}sharpness-aware minimisation, rho {ascent.rho:g}: "
            f"{layout.sharpness_aware_steps:,} of {layout.steps:,} steps pass through their batch twice; "
            "loss is that of the weights themselves, ascended_loss that of the second pass"
        )
    return lines


def closing_lines(
    config: RunConfig,
    state: TrainState,
    loss: float | None,
    validation: ValidationSet | None,
    loss_unit: str,
) -> list[str]:
    """It tells how well it went, and where to look.

    `loss` is none where an earlier session has done all there was to do; `loss_unit` is what the task counts it in.
    """
    folder = config.run_folder
    lines = [f"finished; the run is in {folder}"]
    if validation is None:
        lines.append(f"there was no validation data; surefoot inspect {folder} tells the training loss")
    elif loss is None:
        lines.append(
            f"nothing was left to do; {shlex.join(['surefoot', 'inspect', str(folder)])} tells how it ended"
        )
    else:
        lines.append(f"final validation loss {loss:.4f} {loss_unit}{baseline_loss(validation)}")
    if state.best_step:
        lines.append(
            f"the lowest was {state.best_loss:.4f}, at step {state.best_step}: that checkpoint is kept"
        )
    if config.journal.tensorboard:
        command = [program("tensorboard"), "--logdir", str(folder / TENSORBOARD)]
        lines.append(f"curves: {shlex.join(command)}")
    return lines


def baseline_loss(validation: ValidationSet) -> str:
    """It tells the loss that the data itself knows, for the model's to be compared with."""
    baseline = validation.baseline
    if baseline is None:
        return ""
    where = "" if validation.whole else " on the whole validation set"
    return f", that of {baseline.name} {baseline.loss:.4f}{where}"


def program(name: str) -> str:
    """It tells how to call a program that was installed with this interpreter, on the path or not."""
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.exists() else str(beside)
