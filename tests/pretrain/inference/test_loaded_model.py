"""A model in one process computes what the run computed, from tensors of the right names and shapes alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.tensors import Held, initial_tensors, loaded_model
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed
from torch import Tensor

from parallel.initialization import Normal
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.engine.targets import normalise
from pretrain.errors import CheckpointError
from pretrain.inference.model import load_model, named_tensors
from pretrain.tasks.registry import TASKS

ROOT = Path(__file__).parents[3]
SIGMA: dict[str, Any] = {"reparametrization": "sigma", "dropout": 0.1, "attention": {"kind": "mlra"}}


def changed(change: Callable[[dict[str, Tensor]], Any], config: RunConfig, mesh: ParallelMesh) -> Held:
    source = initial_tensors(config, mesh)
    change(source.tensors)
    return source


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop("layer_02.feed_forward.up.bias"), "it lacks layer_02.feed_forward.up.bias$"),
    "surplus": (lambda t: t.update({"head.weight\x1b": torch.zeros(1)}), r"it has head\.weight\\x1b$"),
    "both": (
        lambda t: t.update({"a": t.pop("embedding.weight")}),
        "it lacks embedding.weight; it has a$",
    ),
    "all": (dict.clear, "it lacks .*, .*, .*, .*, .* and 46 more$"),
    "shape": (
        lambda t: t.update({"final_norm.norm.bias": torch.zeros(31)}),
        r"final_norm.norm.bias: has shape \(31,\), but \(32,\) in this model",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_other_tensors_are_refused(
    alone: ParallelMesh, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    config = make_config(Layout())
    source = changed(change, config, alone)
    with pytest.raises(CheckpointError, match=message):
        load_model(config.model, config.data, "fp32", source, alone)


def test_initial_weights_are_not_drawn(alone: ParallelMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(Layout(), positions="learned", **SIGMA)
    source = initial_tensors(config, alone)

    def drawn(*arguments: object) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(Normal, "rows", drawn)
    load_model(config.model, config.data, "fp32", source, alone)


def test_every_tensor_is_where_it_belongs(alone: ParallelMesh) -> None:
    config = make_config(Layout(), positions="learned")
    source = initial_tensors(config, alone)
    model = load_model(config.model, config.data, "fp32", source, alone)
    found = dict(named_tensors(model.layers, config.model.outline(config.data)))
    assert found.keys() == source.tensors.keys()
    assert all(torch.equal(found[name], source.tensors[name]) for name in found)
    embedding, head = model.layers.layers[0], model.layers.layers[-1]
    assert embedding.weight is head.weight


def test_dtypes_are_those_of_training(alone: ParallelMesh) -> None:
    model = loaded_model(make_config(Layout(dtype="bf16"), **SIGMA), alone)
    assert {parameter.dtype for parameter in model.layers.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.layers.buffers()} == {torch.float32}


def validation_twice(layout: Layout, model: dict[str, Any]) -> tuple[float, float]:
    """The loss of some batches after a few steps, as the engine of training tells it and from its tensors alone."""
    config = make_config(layout, **model)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    for step in range(1, 4):
        engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=1e-2)
    batches = make_batches(config, mesh, 9)
    return engine.evaluate(batches).loss, loss_of(engine, config, mesh)


@torch.no_grad()
def loss_of(engine: TrainEngine, config: RunConfig, mesh: ParallelMesh) -> float:
    """The loss that a model in one process has of the same batches, from the engine's tensors as a checkpoint has them:
    in fp32."""
    tensors = named_tensors(engine.module, config.model.outline(config.data))  # type: ignore[arg-type]
    source = Held({name: tensor.detach().float() for name, tensor in tensors})
    loaded = load_model(config.model, config.data, config.precision.dtype, source, mesh)
    objective = TASKS[config.model.kind].objective(config.model, mesh)
    scaled, _ = normalise(mesh, make_batches(config, mesh, 9))
    return (
        torch.stack([objective(loaded.layers(*batch.inputs), batch.labels) for batch in scaled]).mean().item()
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [{}, SIGMA], ids=["plain", "sigma"])
def test_it_tells_the_loss_that_validation_told(dtype: str, model: dict[str, Any]) -> None:
    """To the bit: in the same layers, dtypes and order."""
    (losses,) = run_distributed(validation_twice, 1, Layout(zero=1, dtype=dtype), model)
    assert losses[0] == losses[1]
    assert 0 < losses[0] < 10


def test_deepspeed_is_not_imported() -> None:
    script = "import sys, pretrain.inference.model; print('deepspeed' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
