"""RunConfig is the table of contents of a run.

Configurations are data: they are frozen and refuse unknown keys. `pretrain.config.loader` reads them from TOML with
overrides and explains what is wrong; rules that span sections live in `pretrain.plan.rules`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data_pipeline.config import DataConfig
from data_pipeline.paths import PathSetting
from parallel.config import ParallelConfig
from pretrain.config.keys import nearest
from pretrain.optim.config import OPTIMIZERS, OptimizerConfig, ScheduleConfig
from pretrain.section import OneOf, Section, kind_of
from pretrain.step import TrainState
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.kinds import KINDS


class RunSection(Section):
    """Identity, length and randomness of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is `folder/name`."""
    folder: PathSetting = Path("runs")
    """Where run folders lie."""
    steps: int = Field(gt=0)
    """Optimizer steps of the whole run."""
    seed: int = Field(default=0, ge=0)
    """Seeds initial weights, dropout and the data order."""
    deepspeed_config: PathSetting | None = None
    """A DeepSpeed JSON of your own, merged over the derived one; shown by `surefoot check`."""


class PrecisionConfig(Section):
    """Numbers."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Compute dtype; bf16 keeps fp32 master weights, which begin as the rounded weights, and optimizer states."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: int = Field(default=1000, gt=0)
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept."""
    keep_every: int | None = Field(default=None, gt=0)
    """Checkpoints at multiples of this step are kept for good."""
    on_other_layout: Literal["convert", "refuse"] = "convert"
    """What becomes of a checkpoint that was saved with other numbers of ranks, or another `parallel.zero_stage` or
    `precision.dtype`: the run goes on from it in its own layout, or ends."""
    background: bool = True
    """The run waits until what is saved is copied to host memory, and a thread writes it; needs that memory for good.
    Where it lacks, and without this, the run waits for the writing."""


class JournalConfig(Section):
    """Where the course of the run is written."""

    console: Literal["auto", "bar", "plain", "none"] = "auto"
    """Progress bar on a terminal and plain lines elsewhere (`auto`), or one of them."""
    console_every_steps: int = Field(default=10, gt=0)
    """Steps between plain lines."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak TFLOP/s of one accelerator for the utilisation; none: known for common devices."""


class EvaluationConfig(Section):
    """Loss and examples on the fixed validation set."""

    every_steps: int = Field(default=500, gt=0)
    """Steps between evaluations; the last step always evaluates."""
    samples: int | None = Field(default=None, gt=0)
    """Samples of the validation set that are used, the first ones; none: all."""
    examples: int = Field(default=64, ge=0)
    """Samples of the validation set, the first ones, that the model makes predictions for, where its task has any
    (translation, speech): their scores, as BLEU, are metrics of validation, and TensorBoard shows some; 0: none."""
    keep_best: bool = False
    """A checkpoint is taken at every validation whose loss is the lowest so far, and the last such one is kept;
    commands that use the model of a run take that one where no other is named."""
    patience: int | None = Field(default=None, gt=0)
    """Early stopping, with `keep_best`: validations in a row without a lower loss, behind which the run is done; none:
    it goes on to its last step."""


class ProbesConfig(Section):
    """What is measured of the model while it trains; nothing here changes the training by a bit (but with
    `model.compile`: a micro-batch whose attention entropy is looked at runs uncompiled, and rounds otherwise)."""

    every_steps: int = Field(default=10, gt=0)
    """Steps between looks of all probes but `tev`, which looks at every step."""
    histogram_every_steps: int = Field(default=100, gt=0)
    """Of those looks, the ones at multiples of this step also draw histograms in TensorBoard."""
    tev: bool = True
    """Token embedding variability (arXiv 2409.07787) of the embedding table: mean, std, max, every so often p99;
    and how far the mean row moves."""
    tev_head: bool = False
    """The same of the head's table, where it is not tied."""
    attention_entropy: bool = True
    """Attention entropy (arXiv 2303.06296) of every head on the first micro-batch, with its lower bound as a check."""
    attention_entropy_rows: Annotated[int, Field(gt=0)] | Literal["all"] = 32
    """Query rows for each head and sample that the entropy is a mean of, evenly spread; or `all`."""
    gradient_variance: bool = True
    """Variance of the gradient between micro-batches, by layer and in total."""
    layer_gradient_norms: bool = True
    """Norm of the gradient of each layer."""
    spectral_norms: bool = True
    """Spectral norm of every matrix of the blocks."""
    activation_rms: bool = True
    """RMS of the residual stream after each block."""
    replicas: bool = True
    """Whether copies of the embedding table and of an untied head are the same by the bit, on data ranks and on the
    stages of a tied table; not with ZeRO-3, which has no copies."""
    update_rms: bool = True
    """RMS of the weights' change by layer, in the update before the look; needs a copy of the fp32 weights for it."""
    sharpness: bool = False
    """Largest eigenvalue of the Hessian of the loss, on the first step of the validation set. A look takes a dozen
    passes of training, the first one up to 40, and as much memory as 10 copies of the fp32 weights. With fp32 alone."""
    sharpness_every_steps: int = Field(default=500, gt=0)
    """Steps between those looks."""


class WatchdogConfig(Section):
    """Watches the signals of a run and takes it back to a certified checkpoint when it slips."""

    enabled: bool = True
    """Without it only non-finite updates are withheld."""
    dry_run: bool = False
    """Only tell what would have been done; non-finite updates are withheld all the same."""
    window: int = Field(default=512, ge=16)
    """Accepted values of loss and gradient norm that their baseline is made of; until they are there, drift raises no
    alarm. Signals that not every step has use a shorter one, of at least 64."""
    threshold: float = Field(default=14.0, ge=6)
    """Decision level of a drift's sum, in robust standard deviations above the allowance; calibrated upwards on the
    run's own residuals."""
    maximum_loss: float | None = Field(default=None, gt=0)
    """A finite loss above it is withheld like a non-finite one, in nats; none: no such cap."""
    maximum_gradient_norm: float | None = Field(default=None, gt=0)
    """The same for the gradient norm before clipping."""
    reach: bool = True
    """Alarm when a row of an embedding table has moved farther than the optimizer can have moved it; measured with
    `probes.tev`, and where the optimizer's updates have a bound."""
    horizon: int = Field(default=128, gt=0)
    """Healthy steps after which a checkpoint is certified."""
    margin: int = Field(default=16, ge=0)
    """Steps before the onset of trouble that a rollback goes back at least, and that its skip begins with."""
    skip_after: int = Field(default=64, ge=0)
    """Steps' worth of samples after the alarm that a rollback skips."""
    memory_every_steps: int = Field(default=64, gt=0)
    """Steps between the candidates that are kept in host memory."""
    memory_keep: int = Field(default=3, ge=0)
    """Candidates in host memory; each takes as much of it as a checkpoint of this rank. None is taken that would not
    leave as much free. From four on more than one certified one is kept, to go deeper without the disk."""
    vetoes_in_a_row: int = Field(default=3, gt=0)
    """Updates withheld in a row; the next one is a rollback."""
    veto_fraction: float = Field(default=0.01, gt=0, le=1)
    """Of the last 1000 steps, the fraction that may be withheld (at least `vetoes_in_a_row`); more is a rollback."""
    rollbacks: int = Field(default=3, ge=0)
    """Rollbacks with a skip in 10,000 steps; the next one goes deeper."""
    replays: int = Field(default=2, ge=0)
    """Rollbacks without a skip, after faults in memory, in a run."""
    deeper: int = Field(default=2, ge=0)
    """Rollbacks to an older checkpoint, with twice the skip and half the learning rate, in a run."""
    deepest: int = Field(default=1, ge=0)
    """Rollbacks to the oldest certified checkpoint, with four times the skip and a quarter of the learning rate."""
    learning_rate_return: int = Field(default=2000, gt=0)
    """Updates over which a lowered learning rate returns to the schedule's, once a horizon past the trouble."""
    skipped_fraction: float = Field(default=0.02, gt=0, le=1)
    """Of all samples of the run, the fraction that rollbacks may skip, one rollback at least; more ends the run. A
    sample that is left out in later epochs as well counts once."""


MODELS = OneOf(KINDS)
"""The [model] section of every task."""
DATA = {kind: section.data_section for kind, section in zip(MODELS.sections, KINDS, strict=True)}
"""Kind of task -> its [data] section."""


class RunConfig(Section):
    """It holds the whole configuration of one training run, section by section."""

    run: RunSection
    model: Annotated[TaskConfig, MODELS]
    parallel: ParallelConfig = ParallelConfig()
    data: Annotated[DataConfig, OneOf(tuple(dict.fromkeys(DATA.values())))]
    optimizer: Annotated[OptimizerConfig, OneOf(OPTIMIZERS)]
    schedule: ScheduleConfig = ScheduleConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    journal: JournalConfig = JournalConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    probes: ProbesConfig = ProbesConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @property
    def run_folder(self) -> Path:
        """The run lives in this folder."""
        return self.run.folder / self.run.name

    def ends_at(self, state: TrainState) -> bool:
        """It tells whether the run is done at a state: at its last step, or where its patience is spent."""
        patience = self.evaluation.patience
        return state.step >= self.run.steps or (patience is not None and state.stale >= patience)


def with_kind_of_data(table: Any) -> Any:
    """It returns a table of settings whose [data] says what kind it is of: users name the task alone; that follows."""
    if not isinstance(table, dict) or not isinstance(table.get("data"), dict):
        return table
    section = DATA[(tasks_meant(table) or list(DATA))[0]]
    return {**table, "data": {**table["data"], "kind": kind_of(section)}}


def tasks_meant(table: dict[str, Any]) -> list[str]:
    """It returns the kind of task that a table of settings names, or those that are spelled like it; maybe none."""
    return nearest(MODELS.kind_in(table.get("model", {})), DATA)
