"""These are the settings of optimizers and of the learning-rate schedule."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from pretrain.errors import Problem
from pretrain.optim.update_bound import adamw_update_bound
from pretrain.section import Section

SMALLEST_EPSILON = 1e-15
"""With a smaller one, gradients whose squares underflow in fp32 could move weights farther than the bound says."""


class SharpnessAwareConfig(Section):
    """Sharpness-aware minimisation (SAM, Foret et al. 2021, arXiv 2010.01412), with any optimizer: a first pass over
    the batch finds where the loss rises fastest, the weights go there, and the update follows the gradient that a
    second pass finds there, from where they were. Such a step costs two."""

    rho: float = Field(default=0.0, ge=0)
    """How far the weights go: the length of the change of all of them together, such as 0.05; 0: no step is one."""
    adaptive: bool = False
    """ASAM (Kwon et al. 2021, arXiv 2102.11600): each weight goes as far as goes with its size, and `rho` is the length
    of all changes relative to their weights, such as 0.5."""
    every_steps: int = Field(default=1, gt=0)
    """Steps whose number is a multiple of it are sharpness-aware; the others are ordinary ones."""
    from_step: int = Field(default=1, gt=0)
    """The first step that may be one."""

    def applies(self, step: int) -> bool:
        """It says whether a step, by its number from 1, is sharpness-aware."""
        return self.rho > 0 and step >= self.from_step and step % self.every_steps == 0

    def among(self, steps: int) -> int:
        """It counts the sharpness-aware steps of a run."""
        return max(steps // self.every_steps - (self.from_step - 1) // self.every_steps, 0) if self.rho else 0


class OptimizerConfig(Section):
    """This is the [optimizer] section; each optimizer derives its own, with a `kind` that names it.

    What is asked for here is all that anything outside of this room knows of an optimizer's settings.
    """

    kind: str
    """Optimizer."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of matrices; biases, normalization gains never decay."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    sharpness_aware: SharpnessAwareConfig = SharpnessAwareConfig()

    needs_whole_matrices: ClassVar[bool] = False
    """Its update of a matrix needs all of it, which ZeRO and tensor-parallel ranks divide."""
    update_scale: ClassVar[float | None] = None
    """About how far one update moves a weight, in learning rates; none where that goes by the gradient."""

    @property
    @abstractmethod
    def state(self) -> tuple[str, ...]:
        """It names what is kept of each weight, an fp32 number each: the memory estimate counts them."""

    @property
    def update_bound(self) -> float | None:
        """This is the most that one update can move a weight, in learning rates, beside a decay of learning rate times
        `weight_decay`; none: there is no bound."""
        return None

    def problems(self) -> Iterator[Problem]:
        """It yields everything about these settings that cannot work together."""
        yield from ()


class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). Its updates have a bound for beta1^2 < beta2."""

    kind: Literal["adamw"] = "adamw"
    """Optimizer."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; biases, normalization gains never decay."""
    implementation: Literal["auto", "torch", "apex"] = "auto"
    """Which fused AdamW: apex's where NVIDIA's apex is installed, else torch's."""

    update_scale: ClassVar[float | None] = 1.0

    @property
    def state(self) -> tuple[str, ...]:
        """It keeps both moments."""
        return "exp_avg", "exp_avg_sq"

    @property
    def update_bound(self) -> float | None:
        """It holds for beta1^2 < beta2, and for an epsilon that squares of gradients do not underflow beside."""
        if self.beta1**2 >= self.beta2 or self.epsilon < SMALLEST_EPSILON:
            return None
        return adamw_update_bound(self.beta1, self.beta2)


class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013), in the form of torch."""

    kind: Literal["sgd"] = "sgd"
    """Optimizer."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """What an update keeps of the one before; 0 keeps nothing, and no state."""
    nesterov: bool = False
    """Nesterov's momentum, which looks one update ahead."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of matrices, coupled: `weight_decay` times the weight is added to its gradient, after clipping.
    Biases, normalization gains never decay."""

    @property
    def state(self) -> tuple[str, ...]:
        """It keeps the momentum, if there is any."""
        return ("momentum_buffer",) if self.momentum else ()

    def problems(self) -> Iterator[Problem]:
        """It refuses Nesterov's momentum without momentum."""
        if self.nesterov and not self.momentum:
            rule = "must be false without momentum: it says how momentum is used"
            yield Problem(
                "optimizer.nesterov", rule, "for example nesterov = false, or momentum = 0.9", "true"
            )


class LARSConfig(OptimizerConfig):
    """LARS (You et al. 2017, arXiv 1708.03888): momentum SGD whose gradient of a matrix, decay included, is scaled by
    eta |w| / (|g| + weight_decay |w| + epsilon). Biases, normalization gains are moved as by SGD. Of stacked matrices,
    such as those of queries, keys and values, each has norms of its own."""

    kind: Literal["lars"] = "lars"
    """Optimizer."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """What an update keeps of the one before; 0 keeps nothing, and no state."""
    trust_coefficient: float = Field(default=0.001, gt=0)
    """eta: an update without momentum is as long as its matrix, times eta, times the learning rate."""
    epsilon: float = Field(default=1e-8, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of matrices, coupled, within the scaling. Biases, normalization gains never decay."""

    @property
    def state(self) -> tuple[str, ...]:
        """It keeps the momentum, if there is any."""
        return ("momentum_buffer",) if self.momentum else ()


class LAMBConfig(OptimizerConfig):
    """LAMB (You et al. 2020, arXiv 1904.00962): AdamW whose update of a matrix, decay included, is scaled to the length
    of the matrix, times the learning rate. Biases, normalization gains are moved as by AdamW. Of stacked matrices, such
    as those of queries, keys and values, each has norms of its own."""

    kind: Literal["lamb"] = "lamb"
    """Optimizer."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of matrices, within the scaling. Biases, normalization gains never decay."""

    @property
    def state(self) -> tuple[str, ...]:
        """It keeps both moments."""
        return "exp_avg", "exp_avg_sq"


class AdagradConfig(OptimizerConfig):
    """Adagrad (Duchi et al. 2011), in the form of torch: a gradient over the root of the sum of all squares so far."""

    kind: Literal["adagrad"] = "adagrad"
    """Optimizer."""
    epsilon: float = Field(default=1e-10, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of matrices, coupled: `weight_decay` times the weight is added to its gradient, after clipping.
    Biases, normalization gains never decay."""

    @property
    def state(self) -> tuple[str, ...]:
        """It keeps the sum of squares."""
        return ("sum",)

    @property
    def update_bound(self) -> float | None:
        """|g| is at most the root of a sum that g^2 is part of. It holds for an epsilon that squares do not underflow
        beside, and is that of the whole update: with weight decay, which is within it, there is none beside that."""
        return 1.0 if self.epsilon >= SMALLEST_EPSILON and not self.weight_decay else None


OPTIMIZERS: tuple[type[OptimizerConfig], ...] = (
    AdamWConfig,
    SGDConfig,
    LARSConfig,
    LAMBConfig,
    AdagradConfig,
)
"""The [optimizer] section of every optimizer, that of the default `optimizer.kind` first."""


class ScheduleConfig(Section):
    """Learning rate over applied updates, as a factor of the peak."""

    kind: Literal["constant", "linear", "cosine", "cosine_restarts", "inverse_sqrt", "wsd", "step"] = "cosine"
    """Shape after warmup: `cosine_restarts` begins again and again (arXiv 1608.03983), `wsd` is warmup-stable-decay,
    `step` goes down by steps."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates of linear warmup."""
    decay_steps: int | None = Field(default=None, gt=0)
    """`wsd`: the last updates of the run, which decay (none: a fifth); else the update at which
    the decay ends (none: the last of the run)."""
    minimum_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of the decay, relative to the peak; no schedule that decays goes below it."""
    restart_every: int | None = Field(default=None, gt=0)
    """`cosine_restarts`: updates from the peak to the end of a decay, behind which comes the peak again."""
    step_factor: float = Field(default=0.5, gt=0, lt=1)
    """`step`: what a step multiplies the learning rate with."""
    step_every: int | None = Field(default=None, gt=0)
    """`step`: updates between two steps, the first that many after the warmup; or name the steps by `milestones`."""
    milestones: tuple[int, ...] = ()
    """`step`: updates that are done at each step, in rising order, such as [1000, 1500]."""
