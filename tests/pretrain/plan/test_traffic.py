"""What a plan says that ranks send each other is what they do send, in steps of real engines over gloo."""

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.cases import forecasting, gpt, speech, translation
from support.distributed import run_distributed
from support.traffic import Call, recorded
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed, slow

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.plan.plan import plan
from pretrain.plan.traffic import AGREEMENTS, step_traffic

Counts = Counter[tuple[str, str, int]]

SMALL = 90
"""Bytes: below are shapes and flags, which the plan leaves out, and of its messages the numbers of few matrices."""
MLRA = {"attention": {"kind": "mlra", "rank": 12}}
SHARDED = {"attention": {"kind": "mlra", "rank": 12, "down_projection": "sharded"}}
SIGMA = {"reparametrization": "sigma"}
UNTIED = {"tied_embeddings": False}
LARGE = {"hidden_size": 192, "num_layers": 2}
"""Most of its matrices are larger than what ZeRO-3 keeps whole."""


def step_calls(config: RunConfig, mesh: ParallelMesh, batches: Any) -> list[Call]:
    """This rank's calls in the third step: in the first ones ZeRO-3 learns in which order parameters are used."""
    engine = make_engine(config, mesh)
    for step in (1, 2):
        engine.step(batches, proceed, step=step, learning_rate=1e-3)
    with recorded() as calls:
        engine.step(batches, proceed, step=3, learning_rate=1e-3)
    return calls


def axis_of(call: Call, mesh: ParallelMesh) -> str:
    """Between which ranks it was; DeepSpeed has groups of its own for some axes, and sends in that of all ranks."""
    if call.kind in ("send", "receive"):
        return "pipeline"
    names = {"stage": mesh.stage, "data": mesh.data, "tensor": mesh.tensor}
    tied = set(call.ranks) <= set(mesh.pipeline.ranks)
    return "tied" if tied else {axis.ranks: name for name, axis in names.items()}[call.ranks]


def sent_and_planned(
    layout: Layout, model: dict[str, Any], settings: str | None = None
) -> tuple[Counts, Counts]:
    """What this rank sends in a step, and what the plan says."""
    config = make_config(layout, **model)
    if settings:
        run = config.run.model_copy(update={"deepspeed_config": Path(settings)})
        config = config.model_copy(update={"run": run})
    mesh = make_mesh(config.parallel)
    sent: Counts = Counter()
    levels = [enumerate(levels.groups) for levels in (mesh.control, mesh.patient)]
    level_of = {group.group_name: number for numbered in levels for number, group in numbered}
    for call in step_calls(config, mesh, make_batches(config, mesh, 1)):
        agreement = level_of.get(call.group)
        if agreement is not None:
            sent["all ranks", call.kind, 0] += agreement == 0  # each goes through all levels
        elif call.bytes >= SMALL:
            sent[axis_of(call, mesh), call.kind, call.bytes] += 1
    planned: Counts = Counter({("all ranks", "all_reduce", 0): AGREEMENTS})
    for message in step_traffic(config, plan(config, layout.world_size))[mesh.pipeline.rank]:
        if message.bytes >= SMALL:
            planned[message.axis, message.kind, message.bytes] += message.times
    return sent, planned


BF16 = "bf16"
CASES = [
    ("all axes", Layout(tensor=2, pipeline=2, accumulation=2), {}),
    ("zero 1, sigma", Layout(data=2, zero=1, accumulation=2), SIGMA),
    *(
        slow(*case)
        for case in (
            ("tensor", Layout(tensor=2, accumulation=2, dtype=BF16), UNTIED),
            ("recomputed", Layout(tensor=2, checkpointing=True), {}),
            ("recomputed, dropout", Layout(tensor=2, checkpointing=True), {"dropout": 0.1}),
            ("recomputed, post", Layout(tensor=2, checkpointing=True), {"norm_placement": "post"}),
            ("recomputed, sharded", Layout(tensor=2, checkpointing=True), SHARDED),
            ("mlra", Layout(tensor=2, accumulation=2), MLRA),
            ("mlra, sharded", Layout(tensor=2), SHARDED),
            ("mlra, sigma", Layout(tensor=2), {**MLRA, **SIGMA}),
            ("sigma, one vector", Layout(tensor=2, data=2, zero=2), {**SIGMA, "sigma_vectors": 1}),
            ("pipeline", Layout(pipeline=4, accumulation=3), {}),
            ("pipeline, untied", Layout(pipeline=2, accumulation=3), UNTIED),
            ("pipeline, zero 1", Layout(pipeline=2, data=2, zero=1, accumulation=2, dtype=BF16), {}),
            ("all axes, zero 1", Layout(2, 2, 2, zero=1, accumulation=2, dtype=BF16), SIGMA),
            ("zero 0", Layout(data=4, accumulation=3), {}),
            ("zero 0, bf16", Layout(data=2, accumulation=2, dtype=BF16), {}),
            ("zero 2", Layout(data=2, zero=2, accumulation=2), {}),
            ("zero 2, bf16", Layout(data=2, zero=2, accumulation=2, dtype=BF16), {}),
            ("zero 3", Layout(data=2, zero=3, accumulation=2), {}),
            ("zero 3, large", Layout(data=2, zero=3, accumulation=2, dtype=BF16), LARGE),
            ("zero 3, tensor", Layout(tensor=2, data=2, zero=3), {**LARGE, **UNTIED}),
        )
    ),
]


@pytest.mark.parametrize(("name", "layout", "model"), CASES)
def test_ranks_send_what_the_plan_says(name: str, layout: Layout, model: dict[str, Any]) -> None:
    for sent, planned in run_distributed(sent_and_planned, layout.world_size, layout, model):
        assert sum(planned.values()) > AGREEMENTS
        assert sent == planned


@pytest.mark.slow
def test_what_zero_3_does_not_keep_is_gathered_twice(tmp_path: Path) -> None:
    settings = {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": settings}))
    layout = Layout(data=2, zero=3, accumulation=2)
    ((sent, planned), _) = run_distributed(sent_and_planned, 2, layout, LARGE, str(path))
    gathered = [
        sum(size * times for (_, kind, size), times in counts.items() if kind == "all_gather")
        for counts in (sent, planned)
    ]
    assert gathered[0] == gathered[1]


TASKS = [
    slow(gpt, {}),
    slow(translation, {}),
    slow(translation, MLRA),
    slow(speech, {}),
    slow(speech, SHARDED),
    slow(forecasting, {}),
    slow(forecasting, {"kind": "temporal"}),
]


def tensor_calls(task: str, model: dict[str, Any], recomputed: bool) -> tuple[Counter[str], Counter[str]]:
    """Kinds of what this rank sends to the other tensor-parallel one for a micro-batch, and of what outlines say."""
    module = import_module(task)
    config = module.make_case(Layout(tensor=2, checkpointing=recomputed), model)
    mesh = make_mesh(config.parallel)
    calls = step_calls(config, mesh, [module.make_batch(config, mesh)])
    sent = Counter(call.kind for call in calls if call.group == mesh.tensor.group.group_name)
    outlined: Counter[str] = Counter()
    for layer in config.model.outline(config.data).layers:
        for collective in layer.collectives:
            outlined[collective.kind] += collective.times
    return sent, outlined


@pytest.mark.parametrize(("task", "model"), TASKS)
@pytest.mark.parametrize("recomputed", [False, slow(True)])
def test_outlines_of_all_tasks_name_their_collectives(
    task: Any, model: dict[str, Any], recomputed: bool
) -> None:
    for sent, outlined in run_distributed(tensor_calls, 2, task.__name__, model, recomputed):
        assert sent == outlined
