"""`surefoot check` shows a plan, as rows for people and as a document for scripts."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.shown import masked, shown
from pretrain.config.run import RunConfig
from pretrain.errors import Problem
from pretrain.plan.batch import BatchEquation
from pretrain.plan.plan import Plan, Stage
from pretrain.runtime.units import in_units

Rows = Iterator[tuple[str, str]]


def plan_rows(config: RunConfig, plan: Plan) -> Rows:
    """It yields (what, value) for each fact of the plan."""
    batch, counts, memory = plan.batch, plan.parameters, plan.memory
    yield "ranks", f"{plan.world_size} = tensor {plan.tensor} x pipeline {plan.pipeline} x data {plan.data}"
    yield "precision", f"{config.precision.dtype}, ZeRO-{plan.zero_stage}"
    yield (
        "batch",
        f"micro {batch.micro} x accumulation {batch.accumulation} x data {batch.data} = "
        f"{batch.samples:,} samples = {batch.tokens:,} tokens a step",
    )
    yield "run", f"{plan.steps:,} steps = {plan.tokens:,} tokens, {plan.tokens_per_parameter:.1f} a parameter"
    yield "parameters", f"{counts.total:,}, {counts.non_embedding:,} without embeddings"
    absent = config.model.outline(config.data).parts
    for part, count in counts.parts.items():
        yield f"  {part.replace('_', '-')}", f"{count:,}" if count else absent[part]
    yield "training", f"{plan.passes * plan.flops_per_token / 1e9:.3g} GFLOP a token"
    if plan.sharpness_aware_steps:
        yield (
            "sharpness-aware",
            f"{plan.sharpness_aware_steps:,} of {plan.steps:,} steps pass through their batch twice: about "
            f"{plan.passes:.3g} times the work, and time, of ordinary ones",
        )
    yield "memory", f"{in_units(memory.total)} on the fullest rank, about"
    for part, size in asdict(memory).items():
        yield f"  {part}", in_units(size)
    if plan.pipeline > 1:
        for index, stage in enumerate(plan.stages):
            yield f"  stage {index}", stage_text(stage)


def stage_text(stage: Stage) -> str:
    """It describes a pipeline stage in a line."""
    return (
        f"layers {stage.first_layer} to {stage.last_layer - 1}, {stage.blocks} of them blocks; "
        f"{stage.parameters:,} parameters and {in_units(stage.memory.total)} a rank"
    )


def plan_document(plan: Plan) -> dict[str, Any]:
    """It returns the plan with everything derived from it, in plain JSON types."""
    return {
        **asdict(plan),
        "batch": batch_document(plan.batch),
        "parameters": {
            **plan.parameters.parts,
            "total": plan.parameters.total,
            "non_embedding": plan.parameters.non_embedding,
        },
        "memory": {**asdict(plan.memory), "total": plan.memory.total},
        "tokens": plan.tokens,
        "tokens_per_parameter": plan.tokens_per_parameter,
        "passes": plan.passes,
    }


def batch_document(batch: BatchEquation) -> dict[str, int]:
    """It returns the batch equation; scripts know the tokens of a sample as `sequence_length`."""
    equation = asdict(batch)
    length = equation.pop("tokens_per_sample")
    return {**equation, "sequence_length": length, "samples": batch.samples, "tokens": batch.tokens}


def problem_document(message: str, problems: tuple[Problem, ...]) -> dict[str, Any]:
    """It returns what is wrong, for scripts, which know the list as `faults`."""
    faults = [{name: masked(text) for name, text in asdict(problem).items()} for problem in problems]
    return {"error": masked(message.splitlines()[0]), "faults": faults}


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """It prints a table on a terminal, plain lines elsewhere; what is in it can neither steer a terminal nor be taken
    for markup."""
    rows, console = [(shown(what), shown(masked(value))) for what, value in rows], Console()
    if not console.is_terminal:
        width = max([18, *(len(what) for what, _ in rows)])
        for what, value in rows:
            print(f"{what:<{width}} {value}")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for what, value in rows:
        table.add_row(Text(what), Text(value))
    console.print(table)
