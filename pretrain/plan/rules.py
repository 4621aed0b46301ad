"""What cannot work, or will work badly, on a given number of ranks: one small rule each."""

from collections.abc import Callable, Iterator
from math import gcd, lcm

from pretrain.config.run import RunConfig
from pretrain.errors import Problem

Rule = Callable[[RunConfig, int], Iterator[Problem]]


def layout_problems(config: RunConfig, world_size: int) -> list[Problem]:
    """Every rule that the configuration breaks on `world_size` ranks."""
    return [problem for rule in RULES for problem in rule(config, world_size)]


def layout_warnings(config: RunConfig, world_size: int) -> Iterator[str]:
    """What works but wastes something; the layout is sound."""
    parallel, data = config.parallel, config.data
    replicas = world_size // (parallel.tensor * parallel.pipeline)
    accumulation = data.global_batch_size // (data.micro_batch_size * replicas)
    if accumulation < parallel.pipeline:
        bubble = (parallel.pipeline - 1) / (accumulation + parallel.pipeline - 1)
        yield (
            f"{accumulation} micro-batches a step cannot fill {parallel.pipeline} pipeline stages: "
            f"{bubble:.0%} of the time is idle; a larger data.global_batch_size or a smaller "
            "data.micro_batch_size gives more of them"
        )
    if config.model.num_layers % parallel.pipeline:
        yield (
            f"{config.model.num_layers} blocks do not divide evenly into {parallel.pipeline} pipeline "
            "stages: the first stages have one more, and the others wait for them"
        )


def world_size_divides(config: RunConfig, world_size: int) -> Iterator[Problem]:
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    if replica_count(config, world_size) is None:
        size = tensor * pipeline
        works = max(round(world_size / size), 1) * size
        yield Problem(
            "parallel",
            f"tensor {tensor} x pipeline {pipeline} = {size} must divide the number of ranks, {world_size}",
            f"for example {works} ranks, or tensor = {gcd(tensor, world_size)} and pipeline = 1",
        )


def snapshot_store_turns_over(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """A lone candidate could never go: the next one ripens beside it."""
    if config.watchdog.memory_keep == 1:
        rule = "there is always one that stays while the next one proves itself"
        yield Problem("watchdog.memory_keep", rule, "for example 2, or 0 for none", "1")


def batch_divides(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """The batch equation: global = micro x accumulation x data."""
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
    blocks, stages = config.model.num_layers, config.parallel.pipeline
    if blocks < stages:
        yield Problem(
            "parallel.pipeline",
            f"must not exceed model.num_layers = {blocks}: each stage needs a block",
            f"for example {blocks}",
            str(stages),
        )


def heads_divide(config: RunConfig, world_size: int) -> Iterator[Problem]:
    model = config.model
    heads, groups = model.attention.num_heads, model.num_key_value_heads
    if model.hidden_size % heads:
        yield Problem(
            "model.hidden_size",
            f"must be a multiple of attention.num_heads = {heads}",
            f"for example {-(-model.hidden_size // heads) * heads}",
            str(model.hidden_size),
        )
    elif model.positions == "rotary" and model.head_size % 2:
        yield Problem(
            "model.hidden_size",
            f"gives heads of odd size {model.head_size}, but rotary positions turn pairs of numbers",
            f'for example {heads * (model.head_size + 1)}, or positions = "learned"',
            str(model.hidden_size),
        )
    if heads % groups:
        yield Problem(
            "model.attention.num_key_value_heads",
            f"must divide num_heads = {heads}",
            f"for example {gcd(heads, groups)}",
            str(groups),
        )


def tensor_divides(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """Heads, feed-forward and vocabulary are divided over tensor-parallel ranks without a remainder."""
    model, tensor = config.model, config.parallel.tensor
    sizes = {
        "model.attention.num_heads": model.attention.num_heads,
        "model.attention.num_key_value_heads": model.num_key_value_heads,
        "model.ffn_hidden_size": model.ffn_size,
    }
    for key, size in sizes.items():
        if size % tensor:
            above = -(-size // tensor) * tensor
            remedy = f"for example {above}, or parallel.tensor = {gcd(tensor, *sizes.values())}"
            yield Problem(key, f"must be a multiple of parallel.tensor = {tensor}", remedy, str(size))
    if model.padded_vocabulary_size % tensor:
        yield Problem(
            "model.vocabulary_multiple",
            f"pads the vocabulary to {model.padded_vocabulary_size}, "
            f"which parallel.tensor = {tensor} must divide",
            f"for example {lcm(model.vocabulary_multiple, tensor)}",
            str(model.vocabulary_multiple),
        )


def rank_divides(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """Rows of sharded down-projections are divided over tensor-parallel ranks without a remainder."""
    model, tensor = config.model, config.parallel.tensor
    sharded = model.attention.kind == "mlra" and model.attention.down_projection == "sharded"
    if sharded and model.attention_rank % tensor:
        yield Problem(
            "model.attention.rank",
            f'must be a multiple of parallel.tensor = {tensor} for down_projection = "sharded", '
            "which cuts each down-projection by its rows",
            f'for example {-(-model.attention_rank // tensor) * tensor}, or down_projection = "replicated"',
            str(model.attention_rank),
        )


def zero_fits_reparametrization(config: RunConfig, world_size: int) -> Iterator[Problem]:
    if config.parallel.zero_stage == 3 and config.model.reparametrization != "none":
        yield Problem(
            "parallel.zero_stage",
            "must be 0, 1 or 2 with a reparametrization: power steps need whole matrices, "
            "and ZeRO-3 takes them apart between layers",
            "for example zero_stage = 1",
            "3",
        )


def schedule_fits_run(config: RunConfig, world_size: int) -> Iterator[Problem]:
    schedule, steps = config.schedule, config.run.steps
    if schedule.warmup_steps >= steps:
        yield Problem(
            "schedule.warmup_steps",
            f"must be less than run.steps = {steps}: the run would end in its warmup",
            f"for example {steps // 10}",
            str(schedule.warmup_steps),
        )
    elif (
        schedule.kind == "wsd"
        and schedule.decay_steps
        and schedule.warmup_steps + schedule.decay_steps > steps
    ):
        yield Problem(
            "schedule.decay_steps",
            f"must fit after the warmup into run.steps = {steps}",
            f"for example {max((steps - schedule.warmup_steps) // 5, 1)}",
            str(schedule.decay_steps),
        )


def kept_checkpoints_exist(config: RunConfig, world_size: int) -> Iterator[Problem]:
    every, kept = config.checkpoint.every_steps, config.checkpoint.keep_every
    if kept and kept % every:
        yield Problem(
            "checkpoint.keep_every",
            f"must be a multiple of every_steps = {every}: there are checkpoints at no other steps",
            f"for example {-(-kept // every) * every}",
            str(kept),
        )


def replica_count(config: RunConfig, world_size: int) -> int | None:
    """Data-parallel size; none where the ranks do not divide."""
    replicas, remainder = divmod(world_size, config.parallel.tensor * config.parallel.pipeline)
    return None if remainder or replicas < 1 else replicas


RULES: tuple[Rule, ...] = (
    world_size_divides,
    batch_divides,
    zero_fits_pipeline,
    blocks_fill_stages,
    heads_divide,
    tensor_divides,
    rank_divides,
    zero_fits_reparametrization,
    schedule_fits_run,
    kept_checkpoints_exist,
    snapshot_store_turns_over,
)
