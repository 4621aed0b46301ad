"""LARS, LAMB and Adagrad under DeepSpeed's wrappers: norms of whole matrices in every layout, exact resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.courses import Losses, largest_difference
from support.distributed import run_distributed
from support.plain_optimizers import Kept, moved
from support.runs import (
    contents,
    differences,
    metrics,
    newest_checkpoint,
    run_and_stop,
    run_config,
    run_to_end,
)
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed, slow
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.optim.config import AdagradConfig, LAMBConfig, LARSConfig, OptimizerConfig
from pretrain.step import Action, StepReport, Verdict

STEPS = 20
CLIPPED = {"gradient_clipping": 0.5}
LARS = LARSConfig(learning_rate=0.2, trust_coefficient=0.1, weight_decay=0.1, **CLIPPED)
LAMB = LAMBConfig(learning_rate=0.02, weight_decay=0.1, **CLIPPED)
ADAGRAD = AdagradConfig(learning_rate=0.001, **CLIPPED)
GPT2: dict[str, Any] = {"positions": "learned"}
LLAMA: dict[str, Any] = {"activation": "swiglu", "normalization": "rms_norm", "tied_embeddings": False}
MLRA: dict[str, Any] = {**GPT2, "attention": {"kind": "mlra"}}
SHARDED: dict[str, Any] = {**GPT2, "attention": {"kind": "mlra", "down_projection": "sharded"}}
SIGMA: dict[str, Any] = {**GPT2, "reparametrization": "sigma"}


def with_optimizer(config: RunConfig, optimizer: OptimizerConfig) -> RunConfig:
    return config.model_copy(update={"optimizer": optimizer})


def course(layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig) -> Losses:
    """(loss, gradient norm) of each step."""
    config = with_optimizer(make_config(layout, **model), optimizer)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    losses = []
    for step in range(1, STEPS + 1):
        report, _ = engine.step(
            make_batches(config, mesh, step), proceed, step=step, learning_rate=optimizer.learning_rate
        )
        losses.append((report.loss, report.gradient_norm))
    return losses


AGREE = [
    (Layout(tensor=2), GPT2, LARS),
    (Layout(tensor=2), LLAMA, LAMB),
    slow(Layout(data=2), LLAMA, LARS),
    (Layout(data=2), GPT2, LAMB),
    (Layout(pipeline=2, accumulation=3), GPT2, LARS),
    slow(Layout(pipeline=2, accumulation=3), GPT2, LAMB),
    (Layout(tensor=2, data=2, zero=1), SIGMA, LARS),
    slow(Layout(tensor=2), SIGMA, LAMB),
    (Layout(tensor=2), MLRA, LAMB),
    slow(Layout(tensor=2, data=2), SHARDED, LARS),
    (Layout(data=2, zero=2), LLAMA, LAMB),
    (Layout(data=2, zero=3), LLAMA, LARS),
    slow(Layout(tensor=2, pipeline=2, zero=1, accumulation=3), GPT2, LAMB),
    (Layout(data=2, zero=1), GPT2, ADAGRAD),
    slow(Layout(data=2, zero=3), GPT2, ADAGRAD),
    slow(Layout(tensor=2, pipeline=2, accumulation=3), SIGMA, ADAGRAD),
]


@pytest.mark.parametrize(("layout", "model", "optimizer"), AGREE, ids=str)
def test_layouts_agree(layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig) -> None:
    (reference,) = run_distributed(course, 1, Layout(), model, optimizer)
    courses = run_distributed(course, layout.world_size, layout, model, optimizer)
    assert all(own == courses[0] for own in courses), "ranks report different numbers"
    assert largest_difference(courses[0], reference, 0) <= 1e-5
    assert largest_difference(courses[0], reference, 1) <= 1e-5


@pytest.mark.parametrize(
    ("layout", "optimizer"),
    [
        (Layout(dtype="bf16"), LARS),
        (Layout(dtype="bf16", tensor=2, data=2, zero=1), LAMB),
        slow(Layout(dtype="bf16", data=2, zero=2), LARS),
        slow(Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), LAMB),
        slow(Layout(dtype="bf16", data=2, zero=3), LAMB),
    ],
    ids=str,
)
def test_bf16_stays_close(layout: Layout, optimizer: OptimizerConfig) -> None:
    (reference,) = run_distributed(course, 1, Layout(), GPT2, optimizer)
    ours = run_distributed(course, layout.world_size, layout, GPT2, optimizer)[0]
    assert largest_difference(ours, reference, 0) <= 3e-3
    assert largest_difference(ours, reference, 1) <= 5e-2


def blocks_of(engine: TrainEngine, config: RunConfig) -> list[tuple[torch.nn.Parameter, list[int], bool]]:
    """Every parameter, the rows of the matrices that are stacked in it, and whether it is one of matrices."""
    outline = config.model.outline(config.data)
    sizes = [size for layer in outline.layers for size in layer.parameters]
    parameters = list(engine.module.parameters())
    assert [size.shape for size in sizes] == [tuple(parameter.shape) for parameter in parameters]
    return [
        (parameter, list(size.stacked if len(size.shape) > 1 else ()) or [len(parameter)], parameter.ndim > 1)
        for size, parameter in zip(sizes, parameters, strict=True)
    ]


def against_the_formula(layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig) -> float:
    """How far each matrix is after 20 steps from where the plain formula takes it by the same gradients, relative."""
    optimizer = optimizer.model_copy(update={"gradient_clipping": 0.0})
    config = with_optimizer(make_config(layout, **model), optimizer)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    blocks = blocks_of(engine, config)
    plain = [[b.detach().double() for b in p.split(rows)] for p, rows, _ in blocks]
    kept: list[list[Kept]] = [[{} for _ in own] for own in plain]
    rate = optimizer.learning_rate

    def judge(report: StepReport) -> Verdict:
        gradients = {id(held.parameter): held.gradient for held in engine._gate.gradients()}
        for number, (parameter, rows, matrix) in enumerate(blocks):
            pieces: list[Tensor] = list(gradients[id(parameter)].view_as(parameter).double().split(rows))
            for block, piece in enumerate(pieces):
                plain[number][block] = moved(
                    optimizer, plain[number][block], piece, rate, kept[number][block], matrix=matrix
                )
        return Verdict(Action.PROCEED)

    for step in range(1, STEPS + 1):
        engine.step(make_batches(config, mesh, step), judge, step=step, learning_rate=rate)
    return max(
        ((ours.double() - theirs).norm() / theirs.norm()).item()
        for (parameter, rows, _), own in zip(blocks, plain, strict=True)
        for ours, theirs in zip(parameter.detach().split(rows), own, strict=True)
    )


@pytest.mark.parametrize(
    ("layout", "model", "optimizer"),
    [
        (Layout(), LLAMA, LARS),
        (Layout(), MLRA, LAMB),
        (Layout(data=2), GPT2, LAMB),
        slow(Layout(zero=1), LLAMA, LAMB),
        slow(Layout(), GPT2, ADAGRAD),
    ],
    ids=str,
)
def test_every_stacked_matrix_moves_by_the_plain_formula(
    layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig
) -> None:
    for difference in run_distributed(against_the_formula, layout.world_size, layout, model, optimizer):
        assert difference < 1e-6


RESUMED = [
    (Layout(tensor=2), SIGMA, LAMB),
    (Layout(dtype="bf16", data=2, zero=1), GPT2, LARS),
    slow(Layout(data=2, zero=3), GPT2, LAMB),
    slow(Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), GPT2, LAMB),
    slow(Layout(dtype="bf16"), GPT2, ADAGRAD),
]


@pytest.mark.parametrize(("layout", "model", "optimizer"), RESUMED, ids=str)
def test_resumed_equals_uninterrupted(
    layout: Layout, model: dict[str, Any], optimizer: OptimizerConfig, corpus: Path, tmp_path: Path
) -> None:
    small = {**model, "num_layers": 2, "hidden_size": 16}
    twin, config = (
        with_optimizer(run_config(layout, tmp_path / name, corpus, model=small), optimizer)
        for name in ("twin", "run")
    )
    assert set(run_distributed(run_to_end, layout.world_size, twin)) == {"finished"}
    assert set(run_distributed(run_and_stop, layout.world_size, config, 3)) == {"preempted"}
    assert set(run_distributed(run_to_end, layout.world_size, config)) == {"finished"}
    ours, theirs = (contents(newest_checkpoint(tmp_path / name)) for name in ("run", "twin"))
    assert differences(ours, theirs) == []
    assert metrics(tmp_path / "run") == metrics(tmp_path / "twin")


def reached(layout: Layout) -> list[float]:
    """`tev_reach` of some steps, with a learning rate that goes up and down."""
    config = with_optimizer(make_config(layout, **GPT2), ADAGRAD)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    ratios = []
    for step in range(1, 9):
        rate = 0.01 * (1 + step % 3)
        report, _ = engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=rate)
        ratios += [report.measures["tev_reach"]] if step > 1 else []
    return ratios


@pytest.mark.parametrize("layout", [Layout(), slow(Layout(dtype="bf16", data=2, zero=1))], ids=str)
def test_rows_never_move_farther_than_adagrad_can_move_them(layout: Layout) -> None:
    for ratios in run_distributed(reached, layout.world_size, layout):
        assert 0.3 < max(ratios) <= 1
