"""RunConfig: the table of contents of a run.

Configs are data: frozen, unknown keys forbidden. `pretrain.config.loader` reads them from TOML with
overrides and explains what is wrong; rules that span sections live in `pretrain.plan.plan`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.text.config import TextConfig
from parallel.config import ParallelConfig


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class RunSection(Section):
    """Identity, length and randomness of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is `folder/name`."""
    folder: Path = Path("runs")
    """Where run folders lie."""
    steps: int = Field(gt=0)
    """Optimizer steps of the whole run."""
    seed: int = Field(default=0, ge=0)
    """Seeds initial weights, dropout and the data order."""
    deepspeed_config: Path | None = None
    """A DeepSpeed JSON of your own, merged over the derived one; shown by `surefoot check`."""


class AttentionConfig(Section):
    """Self-attention of one block."""

    kind: Literal["dense", "mlra"] = "dense"
    """Projections to queries, keys and values: one matrix each, or a product of two, `mlra` (Multi-head Low-Rank
    Attention, arXiv 2409.07787); the keys below that say so are for `mlra` alone."""
    num_heads: int = Field(gt=0)
    """Query heads."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Key and value heads (grouped-query attention); none: as many as query heads."""
    rank: int | None = Field(default=None, gt=0)
    """`mlra`: rank r of the products; none: hidden_size // 2, which leaves the number of parameters as it is (with
    as many key and value heads as query heads)."""
    init: Literal["gpt2", "xavier", "variance_matched"] = "gpt2"
    """`mlra`: initial factors: N(0, init_std^2) both; Xavier normal each; or such that the product has the variance of
    a dense matrix, init_std^2 (the control: without it, low rank also means smaller initial outputs)."""
    down_projection: Literal["replicated", "sharded"] = "replicated"
    """`mlra`: the factors next to the input whole on every tensor-parallel rank, or cut by their rows."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the attention probabilities."""


class ModelConfig(Section):
    """A decoder-only GPT."""

    kind: Literal["gpt"] = "gpt"
    """Architecture."""
    num_layers: int = Field(gt=0)
    """Transformer blocks."""
    hidden_size: int = Field(gt=0)
    """Width d of the residual stream."""
    ffn_hidden_size: int | None = Field(default=None, gt=0)
    """Inner width of the feed-forward layer; none: 4 d for GELU, 8/3 d (to a multiple of 64) for SwiGLU."""
    vocabulary_size: int = Field(gt=0)
    """Size of the tokenizer's vocabulary."""
    vocabulary_multiple: int = Field(default=128, gt=0)
    """The embedding table is padded to a multiple of this; padded rows stay zero and are never predicted."""
    attention: AttentionConfig
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Feed-forward activation."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Position information: rotary embedding of queries and keys, or a learned table."""
    rotary_base: float = Field(default=10_000.0, gt=0)
    """Base of the rotary frequencies."""
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Which normalization."""
    norm_placement: Literal["pre", "post", "none"] = "pre"
    """`pre`: x + f(norm(x)), and a last norm before the head; `post`: norm(x + f(x)), and no last norm (Vaswani et al.
    2017, arXiv 1706.03762); `none`: x + f(x). Initial weights are the same for all three."""
    normalization_epsilon: float = Field(default=1e-5, gt=0)
    """Added to the variance before the square root."""
    bias: bool = True
    """Biases in linear and LayerNorm layers."""
    tied_embeddings: bool = True
    """The head uses the embedding table."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the embedding and on each residual branch."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of initial weights; for residual projections divided by sqrt(2 layers) (GPT-2)."""
    reparametrization: Literal["none", "sigma", "sigma_stats_only"] = "none"
    """sigmaReparam (arXiv 2303.06296) on every matrix of the blocks, or its spectral norms without using them."""
    gamma_init: Literal["sigma", "one"] = "sigma"
    """First gamma of sigmaReparam: the spectral norm (the reference code), so that nothing changes, or 1 (the text)."""
    sigma_vectors: int = Field(default=8, gt=0)
    """Vectors of the power iteration: 1 as in the reference code; more follow sigma where singular values cross."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""

    @property
    def num_key_value_heads(self) -> int:
        return self.attention.num_key_value_heads or self.attention.num_heads

    @property
    def attention_rank(self) -> int:
        """Rank r of low-rank attention."""
        return self.attention.rank or self.hidden_size // 2

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.attention.num_heads

    @property
    def ffn_size(self) -> int:
        if self.ffn_hidden_size:
            return self.ffn_hidden_size
        if self.activation == "gelu":
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // 3 // 64) * 64

    @property
    def padded_vocabulary_size(self) -> int:
        return -(-self.vocabulary_size // self.vocabulary_multiple) * self.vocabulary_multiple


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    """Optimizer."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; biases, normalization gains never decay."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    implementation: Literal["auto", "torch", "apex"] = "auto"
    """Which fused AdamW: apex's where NVIDIA's apex is installed, else torch's."""


class ScheduleConfig(Section):
    """Learning rate over applied updates, as a factor of the peak."""

    kind: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = "cosine"
    """Shape after warmup: `wsd` is warmup-stable-decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates of linear warmup."""
    decay_steps: int | None = Field(default=None, gt=0)
    """`wsd`: the last updates of the run, which decay (none: a fifth); else the update at which
    the decay ends (none: the last of the run)."""
    minimum_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of the decay, relative to the peak."""


class PrecisionConfig(Section):
    """Numbers."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Compute dtype; bf16 keeps fp32 master weights and optimizer states."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: int = Field(default=1000, gt=0)
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept."""
    keep_every: int | None = Field(default=None, gt=0)
    """Checkpoints at multiples of this step are kept for good."""
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
    """Loss on the fixed validation set."""

    every_steps: int = Field(default=500, gt=0)
    """Steps between evaluations; the last step always evaluates."""
    samples: int | None = Field(default=None, gt=0)
    """Samples of the validation set that are used, the first ones; none: all."""


class ProbesConfig(Section):
    """What is measured of the model while it trains; nothing here changes the training by a bit."""

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
    """Alarm when a row of the embedding table has moved farther than AdamW can have moved it; measured with
    `probes.tev`, and where AdamW's reach is bounded: for beta1^2 < beta2."""
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
    """Of all samples of the run, the fraction that rollbacks may skip, one rollback at least; more ends the run."""


class RunConfig(Section):
    """One training run."""

    run: RunSection
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    data: TextConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    journal: JournalConfig = JournalConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    probes: ProbesConfig = ProbesConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @property
    def run_folder(self) -> Path:
        return self.run.folder / self.run.name
