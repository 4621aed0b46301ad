"""These rules, one small function each, tell what cannot work, or will work badly, on a given number of ranks."""

from collections.abc import Callable, Iterator
from math import gcd

from data_pipeline.reading.weights import CYCLE, apportion, least_weight
from pretrain.config.run import RunConfig
from pretrain.errors import Problem
from pretrain.optim.config import SharpnessAwareConfig
from pretrain.optim.schedule import decay_start, steps_down

Rule = Callable[[RunConfig, int], Iterator[Problem]]


def layout_problems(config: RunConfig, world_size: int) -> list[Problem]:
    """It returns every rule that the configuration breaks on `world_size` ranks."""
    return [problem for rule in RULES for problem in rule(config, world_size)]


def layout_warnings(config: RunConfig, world_size: int) -> Iterator[str]:
    """It yields what works but wastes something; the layout is sound."""
    parallel, data = config.parallel, config.data
    replicas = world_size // parallel.model_size
    accumulation = data.global_batch_size // (data.micro_batch_size * replicas)
    if accumulation < parallel.pipeline:
        bubble = (parallel.pipeline - 1) / (accumulation + parallel.pipeline - 1)
        yield (
            f"{accumulation} micro-batches a step cannot fill {parallel.pipeline} pipeline stages: "
            f"{bubble:.0%} of the time is idle; a larger data.global_batch_size or a smaller "
            "data.micro_batch_size gives more of them"
        )
    blocks = len(config.model.outline(config.data).blocks)
    if blocks % parallel.pipeline:
        yield (
            f"{blocks} blocks do not divide evenly into {parallel.pipeline} pipeline "
            "stages: the first stages have one more, and the others wait for them"
        )
    if (
        config.watchdog.enabled
        and config.watchdog.reach
        and config.probes.tev
        and config.optimizer.update_bound is None
    ):
        yield f"updates of {config.optimizer.kind} have no bound here, so watchdog.reach finds nothing"
    yield from ascent_warnings(config)


def ascent_warnings(config: RunConfig) -> Iterator[str]:
    """It yields why no step is sharpness-aware where that section says something."""
    section, steps = config.optimizer.sharpness_aware, config.run.steps
    if section == SharpnessAwareConfig() or section.among(steps):
        return
    if not section.rho:
        yield "no step is sharpness-aware: optimizer.sharpness_aware.rho = 0; for example rho = 0.05"
    else:
        yield (
            f"no step is sharpness-aware: of {steps:,} steps none from optimizer.sharpness_aware.from_step = "
            f"{section.from_step:,} on is a multiple of every_steps = {section.every_steps:,}"
        )


def world_size_divides(config: RunConfig, world_size: int) -> Iterator[Problem]:
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    if replica_count(config, world_size) is None:
        size = config.parallel.model_size
        works = max(round(world_size / size), 1) * size
        yield Problem(
            "parallel",
            f"tensor {tensor} x pipeline {pipeline} = {size} must divide the number of ranks, {world_size}",
            f"for example {works} ranks, or tensor = {gcd(tensor, world_size)} and pipeline = 1",
        )


def snapshot_store_turns_over(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """A lone candidate could never go, because the next one proves itself beside it."""
    if config.watchdog.memory_keep == 1:
        rule = "there is always one that stays while the next one proves itself"
        yield Problem("watchdog.memory_keep", rule, "for example 2, or 0 for none", "1")


def batch_divides(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """The batch equation must come out even: global = micro x accumulation x data."""
    micro, whole = config.data.micro_batch_size, config.data.global_batch_size
    replicas = replica_count(config, world_size)
    if replicas is None or whole % (micro * replicas) == 0:
        return
    unit = micro * replicas
    below, above = whole // unit * unit, -(-whole // unit) * unit
    yield Problem(
        "data.global_batch_size",
        f"must be a multiple of micro_batch_size {micro} x {replicas} data-parallel ranks = {unit}",
        "for example " + (f"{below} or {above}" if below else f"{above}"),
        str(whole),
    )


def sources_are_drawn(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """A mixture must have a draw for each of its sources in every cycle."""
    weights = [source.weight for source in config.data.sources]
    rule = f"must be at least {1 / CYCLE:g} of the sum of all weights, {sum(weights):g}, to be drawn at all"
    least = least_weight(weights)
    remedy = f"for example {least:g}" if least else "leave sources out"
    for number, draws in enumerate(apportion(weights, CYCLE)):
        if not draws:
            yield Problem(f"data.sources[{number}].weight", rule, remedy, f"{weights[number]:g}")


def zero_fits_pipeline(config: RunConfig, world_size: int) -> Iterator[Problem]:
    parallel = config.parallel
    if parallel.pipeline == 1:
        return
    if parallel.zero_stage >= 2:
        yield Problem(
            "parallel.zero_stage",
            "must be 0 or 1 with pipeline > 1: stages keep their gradients between micro-batches, "
            "so that ZeRO cannot divide them",
            "for example zero_stage = 1",
            str(parallel.zero_stage),
        )
    if parallel.zero_stage == 0 and config.precision.dtype == "bf16":
        yield Problem(
            "parallel.zero_stage",
            "must be 1 with pipeline > 1 and bf16: "
            "DeepSpeed writes a checkpoint of ZeRO-0 that it cannot load",
            "for example zero_stage = 1",
            "0",
        )


def blocks_fill_stages(config: RunConfig, world_size: int) -> Iterator[Problem]:
    blocks, stages = len(config.model.outline(config.data).blocks), config.parallel.pipeline
    if blocks < stages:
        yield Problem(
            "parallel.pipeline",
            f"must not exceed {blocks}, the blocks of the model: each stage needs one",
            f"for example {blocks}",
            str(stages),
        )


def model_fits(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """It yields what the task says against its model on these ranks."""
    yield from config.model.problems(config.data, config.parallel)


def optimizer_fits(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """The optimizer's settings must fit each other, and it must get whole matrices where it needs them."""
    optimizer, parallel = config.optimizer, config.parallel
    yield from optimizer.problems()
    if not optimizer.needs_whole_matrices:
        return
    reason = f"with optimizer.kind = {optimizer.kind}, whose update of a matrix needs all of it:"
    if parallel.zero_stage >= 1:
        rule = f"must be 0 {reason} ZeRO divides what the optimizer moves"
        yield Problem("parallel.zero_stage", rule, "for example zero_stage = 0", str(parallel.zero_stage))
    if parallel.tensor > 1:
        rule = f"must be 1 {reason} tensor-parallel ranks hold parts of matrices"
        yield Problem("parallel.tensor", rule, "for example tensor = 1", str(parallel.tensor))


def schedule_fits_run(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """Warmup comes before the decay, and both within the run; else the learning rate would fall at once."""
    schedule, steps = config.schedule, config.run.steps
    warmup, decay = schedule.warmup_steps, schedule.decay_steps
    if warmup >= steps:
        yield Problem(
            "schedule.warmup_steps",
            f"must be less than run.steps = {steps}: the run would end in its warmup",
            f"for example {steps // 10}",
            str(warmup),
        )
    elif schedule.kind == "wsd" and decay_start(steps, schedule) < warmup:
        yield Problem(
            "schedule.decay_steps",
            f"must fit after the warmup into run.steps = {steps}"
            + (
                ""
                if decay
                else f", and is a fifth of that, {steps - decay_start(steps, schedule)}, if not given"
            ),
            f"for example {max((steps - warmup) // 5, 1)}",
            str(decay or ""),
        )
    elif schedule.kind in ("linear", "cosine") and decay and decay <= warmup:
        yield Problem(
            "schedule.decay_steps",
            f"must come after schedule.warmup_steps = {warmup}: it is the update at which the decay ends",
            f"for example {steps}",
            str(decay),
        )


def steps_of_schedule_fit(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """A `step` schedule says in one way where its steps are, others in none; and each step lies within the decay."""
    schedule, steps = config.schedule, config.run.steps
    every, milestones = schedule.step_every, schedule.milestones
    middle, quarter = (schedule.warmup_steps + steps) // 2, max((steps - schedule.warmup_steps) // 4, 1)
    example = f"for example milestones = [{middle}, {middle + quarter}], or step_every = {quarter}"
    if (schedule.kind == "cosine_restarts") is not (schedule.restart_every is not None):
        rule = "goes with kind = cosine_restarts, which needs it, and with no other kind"
        remedy = f'for example kind = "cosine_restarts", restart_every = {max(steps // 10, 1)}'
        yield Problem("schedule.restart_every", rule, remedy, str(schedule.restart_every or "nothing"))
    if schedule.kind != "step":
        for name, value in (("step_every", every), ("milestones", list(milestones))):
            if value:
                rule = f'is of kind "step" alone, and the schedule is of kind "{schedule.kind}"'
                yield Problem(f"schedule.{name}", rule, 'for example kind = "step"', str(value))
    elif (every is None) == (not milestones):
        rule = f"must be given, or step_every, and not both, with kind = {schedule.kind}: they say where its steps are"
        yield Problem("schedule.milestones", rule, example, str(list(milestones)))
    elif list(milestones) != sorted(set(milestones)):
        rule = "must rise: they are updates, in order"
        yield Problem("schedule.milestones", rule, example, str(list(milestones)))
    elif not all(schedule.warmup_steps < at < steps for at in (steps_down(steps, schedule) or (steps,))):
        key, value = ("step_every", every) if every else ("milestones", list(milestones))
        rule = f"must put steps behind schedule.warmup_steps = {schedule.warmup_steps} and before run.steps = {steps}"
        yield Problem(f"schedule.{key}", rule, example, str(value))


def kept_checkpoints_exist(config: RunConfig, world_size: int) -> Iterator[Problem]:
    every, kept = config.checkpoint.every_steps, config.checkpoint.keep_every
    if kept and kept % every:
        yield Problem(
            "checkpoint.keep_every",
            f"must be a multiple of every_steps = {every}: there are checkpoints at no other steps",
            f"for example {-(-kept // every) * every}",
            str(kept),
        )


def patience_has_a_best(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """Early stopping needs to know the lowest loss so far, which a run that keeps the best checkpoint does."""
    patience = config.evaluation.patience
    if patience is not None and not config.evaluation.keep_best:
        rule = "needs evaluation.keep_best = true: the run ends past its best weights, which are then kept"
        yield Problem("evaluation.patience", rule, "keep_best = true, or no patience", str(patience))


def sharpness_is_seen(config: RunConfig, world_size: int) -> Iterator[Problem]:
    if config.probes.sharpness and config.precision.dtype != "fp32":
        yield Problem(
            "probes.sharpness",
            f"needs precision.dtype = fp32: {config.precision.dtype} rounds away the small steps it is measured by",
            "false; measure checkpoints with `surefoot sharpness`, in fp32 whatever the run computes in",
            "true",
        )


def replica_count(config: RunConfig, world_size: int) -> int | None:
    """It returns the data-parallel size; none where the ranks do not divide."""
    replicas, remainder = divmod(world_size, config.parallel.model_size)
    return None if remainder or replicas < 1 else replicas


RULES: tuple[Rule, ...] = (
    world_size_divides,
    batch_divides,
    sources_are_drawn,
    zero_fits_pipeline,
    blocks_fill_stages,
    model_fits,
    optimizer_fits,
    schedule_fits_run,
    steps_of_schedule_fit,
    patience_has_a_best,
    kept_checkpoints_exist,
    snapshot_store_turns_over,
    sharpness_is_seen,
)
