"""The outline of every task and the modules that it builds are the same model: layer, name, shape, and what is said of
both. Whoever changes one of the two sees here that the other must follow."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.distributed import run_distributed
from support.pair_model import Pair
from support.training import Layout, make_mesh
from torch import Tensor, nn

from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.low_rank import ReplicatedLinear
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec, SequentialLayers
from parallel.rng import RandomStreams
from parallel.vocab import VocabularyParallelEmbedding
from pretrain.config.run import RunConfig
from pretrain.models.attention import AttentionCore
from pretrain.models.context import Materials
from pretrain.models.named import persistent_buffers
from pretrain.models.outline import BufferSize, LayerSize, Outline
from pretrain.runtime.kernels import detect_kernels
from pretrain.section import kind_of
from pretrain.tasks.kinds import KINDS
from pretrain.tasks.registry import TASKS
from pretrain.tasks.task import Task

FOLDER = Path(__file__).parents[2] / "support" / "cases"
CASES: dict[str, Any] = {
    path.stem: import_module(f"support.cases.{path.stem}") for path in FOLDER.glob("*.py")
}
"""By task, configurations of it; besides the tasks of the registry the encoder-decoder of the tests."""
TENSOR = (1, 2)


def case_config(kind: str, name: str, tensor: int) -> RunConfig:
    config: RunConfig = CASES[kind].make_case(Layout(tensor=tensor), CASES[kind].CASES[name])
    return config


def task_of(config: RunConfig) -> Task[Any]:
    return Pair() if config.model.kind == "pair" else TASKS[config.model.kind]


def specs_of(config: RunConfig, mesh: ParallelMesh) -> list[LayerSpec]:
    materials = Materials(mesh, RandomStreams(1, mesh), detect_kernels(), seed=1)
    return task_of(config).layers(config.model, config.data, materials)


# The comparison: what does not agree, in words


def mismatches(
    outline: Outline, specs: list[LayerSpec], tensor: int, inputs: tuple[Tensor, ...]
) -> list[str]:
    """Nothing where outline and modules agree."""
    if len(outline.layers) != len(specs):
        return [f"{len(outline.layers)} layers in the outline, {len(specs)} built"]
    found = [f"{name} names {n} layers" for name, n in Counter(outline.names).items() if n > 1]
    found += ties(outline, specs)
    model = SequentialLayers(specs)
    for layer, module in zip(outline.layers, model.layers, strict=True):
        found += [f"{layer.name}: {words}" for words in parameters(layer, module, tensor)]
        found += [f"{layer.name}: {words}" for words in buffers(layer, module, tensor)]
        found += [f"{layer.name}: {words}" for words in attentions(layer, module)]
        found += [f"{layer.name}: {words}" for words in table(layer, module, tensor)]
    heads, looked_up, handed_on = run(model, inputs)
    if handed_on != outline.handed_on:
        found.append(f"{outline.handed_on} tensors are handed on, but {handed_on} by the layers built")
    for layer, module in zip(outline.layers, model.layers, strict=True):
        for attention in layer.attentions:
            there = heads.get(id(dict(module.named_modules()).get(attention.module)))
            if there != attention.heads // tensor:
                found.append(f"{layer.name}: {attention.module} has {there} heads of {attention.heads}")
        number = layer.table.input if layer.table else None
        if looked_up.get(id(module)) != number:
            found.append(f"{layer.name}: input {number} is to be looked up, not {looked_up.get(id(module))}")
    return found


def ties(outline: Outline, specs: list[LayerSpec]) -> Iterator[str]:
    """Layers are tied to one another as the specifications have it."""
    for index, (layer, spec) in enumerate(zip(outline.layers, specs, strict=True)):
        if layer.tied_to and layer.tied_to not in outline.names:
            yield f"{layer.name}: tied to {layer.tied_to}, which is no layer"
            continue
        together = {i for i, other in enumerate(specs) if spec.tie is not None and other.tie == spec.tie}
        if (together or {index}) != set(outline.sharers(outline.owner(index))):
            yield f"{layer.name}: tied otherwise"


def parameters(layer: LayerSize, module: nn.Module, tensor: int) -> Iterator[str]:
    """Names, shapes and order of the layer's own; how they are divided, stacked and used."""
    built = [(n, p) for n, p in module.named_parameters() if not (layer.tied_to and n == "weight")]
    if [name for name, _ in built] != [parameter.name for parameter in layer.parameters]:
        yield f"{[p.name for p in layer.parameters]}, but {[name for name, _ in built]} built"
        return
    for size, (name, parameter) in zip(layer.parameters, built, strict=True):
        shape = tuple(
            n // tensor if dimension == size.sharded else n for dimension, n in enumerate(size.shape)
        )
        if shape != parameter.shape:
            yield f"{name} is {shape}, but {tuple(parameter.shape)} built"
        dimension = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
        if dimension != size.sharded:
            yield f"{name} is divided by {size.sharded}, but {dimension} built"
        owner = module.get_submodule(name.rpartition(".")[0])
        ranks = 1 if size.sharded is None else tensor
        local = [rows // ranks for rows in size.stacked or size.shape[:1]]
        if size.sharded != 1 and stacked(owner, local) != local:
            yield f"{name} has matrices of {local} rows, but {stacked(owner, local)} built"
        ours = isinstance(owner, ColumnParallelLinear | RowParallelLinear | ReplicatedLinear)
        if layer.is_block and type(owner) is nn.Linear:
            yield f"{name} is in no layer of parallel.linear, whose spectral norm the probes know"
        linear = ours or type(owner) is nn.Linear
        if len(size.shape) == 2 and linear == size.looked_up:
            yield f"{name} is {'' if size.looked_up else 'not '}looked up"


def stacked(owner: nn.Module, local: list[int]) -> list[int]:
    """Rows on this rank of the matrices that a linear layer of ours has; those of the outline for other modules."""
    ours = isinstance(owner, ColumnParallelLinear | ReplicatedLinear)
    return owner.local_blocks if ours else local  # type: ignore[return-value]


def buffers(layer: LayerSize, module: nn.Module, tensor: int) -> Iterator[str]:
    """Names, shapes and order of what is kept beside parameters; how it is divided."""
    built = dict(persistent_buffers(module))
    if list(built) != [buffer.name for buffer in layer.buffers]:
        yield f"buffers {[buffer.name for buffer in layer.buffers]}, but {list(built)} built"
        return
    for size in layer.buffers:
        shape = tuple(n // tensor if d == size.sharded else n for d, n in enumerate(size.shape))
        if shape != built[size.name].shape:
            yield f"{size.name} is {shape}, but {tuple(built[size.name].shape)} built"
        owner = module.get_submodule(size.name.rpartition(".spectral.")[0])
        ranks = 1 if size.sharded is None else tensor
        local = [rows // ranks for rows in size.stacked]
        if local and stacked(owner, local) != local:
            yield f"{size.name} has pieces of {local}, but {stacked(owner, local)} built"


def attentions(layer: LayerSize, module: nn.Module) -> Iterator[str]:
    """Every module that attends has its entry, and those of one block are told apart."""
    cores = [name for name, part in module.named_modules() if isinstance(part, AttentionCore)]
    if cores != [attention.module for attention in layer.attentions]:
        yield f"attentions {[attention.module for attention in layer.attentions]}, but {cores} built"
    if len({attention.name for attention in layer.attentions}) < len(layer.attentions):
        yield "attentions of the same name"


def table(layer: LayerSize, module: nn.Module, tensor: int) -> Iterator[str]:
    """Real rows have weights, those of the padding have none, on the rank that has them."""
    if layer.table is None:
        return
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    rank = torch.distributed.get_rank() % tensor
    first = rank * len(weight)
    used = [first + row for row in weight.detach().abs().sum(1).nonzero().flatten().tolist()]
    real = list(range(first, min(first + len(weight), layer.table.rows)))
    if used != real:
        yield f"real rows on rank {rank} are {real[:1]} to {real[-1:]}, but {used[:1]} to {used[-1:]} built"
    if not layer.table.measures.startswith("tev"):
        yield f"{layer.table.measures} does not begin with tev"
    if weight.shape[1] != layer.table.columns:
        yield f"{layer.table.columns} columns, but {weight.shape[1]} built"


def run(model: SequentialLayers, inputs: tuple[Tensor, ...]) -> tuple[dict[int, int], dict[int, int], int]:
    """By id of the module: heads of every attention on this rank; which input every embedding looks up. And the most
    tensors with a gradient that a layer hands on."""
    heads: dict[int, int] = {}
    handed_on: list[int] = []
    looked_up: dict[int, int] = {}
    embed = VocabularyParallelEmbedding.forward

    def count(core: nn.Module, arguments: tuple[Any, ...]) -> None:
        heads[id(core)] = arguments[0].shape[1]

    def carry(layer: nn.Module, arguments: tuple[Any, ...], outputs: Any) -> None:
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        handed_on.append(sum(tensor.requires_grad for tensor in tensors))

    def note(module: VocabularyParallelEmbedding, ids: Tensor) -> Tensor:
        looked_up[id(module)] = next(i for i, known in enumerate(inputs) if torch.equal(known, ids))
        return embed(module, ids)

    for module in model.modules():
        if isinstance(module, AttentionCore):
            module.register_forward_pre_hook(count)
    for layer in model.layers:
        layer.register_forward_hook(carry)
    with patch.object(VocabularyParallelEmbedding, "forward", note):
        model.eval()(*inputs)
    return heads, looked_up, max(handed_on)


# What must agree


def compared(kind: str, name: str, tensor: int) -> list[str]:
    config = case_config(kind, name, tensor)
    mesh = make_mesh(config.parallel)
    outline = config.model.outline(config.data)
    specs = specs_of(config, mesh)
    return mismatches(outline, specs, tensor, CASES[kind].make_batch(config, mesh).inputs)


def all_compared(kind: str, tensor: int) -> dict[str, list[str]]:
    return {name: found for name in CASES[kind].CASES if (found := compared(kind, name, tensor))}


def test_every_task_has_cases() -> None:
    there = {case_config(kind, name, 1).model.kind for kind in CASES for name in CASES[kind].CASES}
    missing = {kind_of(section) for section in KINDS} - there
    assert not missing, f"give them a file in {FOLDER}"


@pytest.mark.parametrize("tensor", TENSOR)
@pytest.mark.parametrize("kind", CASES)
def test_outline_and_modules_agree(kind: str, tensor: int) -> None:
    assert run_distributed(all_compared, tensor, kind, tensor) == [{}] * tensor


# What the comparison sees


def with_parameter(outline: Outline, layer: int, which: str, **changes: Any) -> Outline:
    size = outline.layers[layer]
    parameters = tuple(replace(p, **changes) if p.name == which else p for p in size.parameters)
    return with_layer(outline, layer, parameters=parameters)


def with_layer(outline: Outline, layer: int, **changes: Any) -> Outline:
    layers = list(outline.layers)
    layers[layer] = replace(layers[layer], **changes)
    return replace(outline, layers=tuple(layers))


def with_table(outline: Outline, layer: int, **changes: Any) -> Outline:
    size = outline.layers[layer].table
    assert size is not None
    return with_layer(outline, layer, table=replace(size, **changes))


def with_attention(outline: Outline, layer: int, **changes: Any) -> Outline:
    (size,) = outline.layers[layer].attentions
    return with_layer(outline, layer, attentions=(replace(size, **changes),))


QKV = "attention.qkv.linear.weight"
WRONG: dict[str, tuple[Callable[[Outline], Outline], str]] = {
    "a layer too few": (lambda o: replace(o, layers=o.layers[1:]), "7 layers in the outline, 8 built"),
    "two of a name": (lambda o: with_layer(o, 3, name="layer_00"), "layer_00 names 2 layers"),
    "tied to another": (lambda o: with_layer(o, 7, tied_to=""), "head: tied otherwise"),
    "tied to nothing": (lambda o: with_layer(o, 7, tied_to="x"), "head: tied to x, which is no layer"),
    "a name": (lambda o: with_parameter(o, 2, QKV, name="x"), "layer_00: ['attention_norm.weight'"),
    "a shape": (
        lambda o: with_parameter(o, 2, QKV, shape=(90, 32)),
        "layer_00: attention.qkv.linear.weight is",
    ),
    "another division": (
        lambda o: with_parameter(o, 2, QKV, sharded=None),
        "is divided by None, but 0 built",
    ),
    "a stack": (lambda o: with_parameter(o, 2, QKV, stacked=()), "has matrices of [96] rows, but [32, 32"),
    "other stacks": (
        lambda o: with_parameter(o, 2, QKV, stacked=(64, 16, 16)),
        "rows, but [32, 32, 32] built",
    ),
    "a buffer": (lambda o: with_layer(o, 2, buffers=(BufferSize("x", (1,)),)), "buffers ['x'], but [] built"),
    "looked up": (lambda o: with_parameter(o, 2, QKV, looked_up=True), f"{QKV} is looked up"),
    "no attention": (
        lambda o: with_layer(o, 2, attentions=()),
        "attentions [], but ['attention.core'] built",
    ),
    "a module": (lambda o: with_attention(o, 2, module="attention"), "attentions ['attention'], but"),
    "heads": (lambda o: with_attention(o, 2, heads=8), "has 4 heads of 8"),
    "rows": (lambda o: with_table(o, 0, rows=301), "embedding: real rows on rank 0 are"),
    "measures": (lambda o: with_table(o, 0, measures="source"), "source does not begin with tev"),
    "columns": (lambda o: with_table(o, 0, columns=31), "embedding: 31 columns, but 32 built"),
    "an input": (lambda o: with_table(o, 0, input=None), "embedding: input None is to be looked up, not 0"),
    "what is handed on": (
        lambda o: replace(o, handed_on=2),
        "2 tensors are handed on, but 1 by the layers built",
    ),
    "no input": (lambda o: with_table(o, 7, input=0), "head: input 0 is to be looked up, not None"),
}


def broken() -> dict[str, list[str]]:
    """What is found where one thing is said wrong, by name."""
    config = case_config("gpt", "plain", 1)
    mesh = make_mesh(config.parallel)
    outline = config.model.outline(config.data)
    inputs = CASES["gpt"].make_batch(config, mesh).inputs
    return {
        name: mismatches(spoil(outline), specs_of(config, mesh), 1, inputs)
        for name, (spoil, _) in WRONG.items()
    }


def test_each_kind_of_disagreement_is_found() -> None:
    (found,) = run_distributed(broken, 1)
    for name, (_, words) in WRONG.items():
        assert any(words in line for line in found[name]), (name, found[name])
