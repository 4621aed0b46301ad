"""Over all ranks of any layout, the parts that are measured are every element of every matrix, once."""

from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.training import Layout, make_config, make_engine, make_mesh, slow

from pretrain.backend.matrices import borders, matrix_sizes
from pretrain.optim.config import LARSConfig
from pretrain.optim.layerwise import LayerwiseOptimizer, Matrices

GPT2: dict[str, Any] = {"positions": "learned"}
LLAMA: dict[str, Any] = {
    "activation": "swiglu",
    "tied_embeddings": False,
    "attention": {"num_heads": 4, "num_key_value_heads": 2},
}
MLRA: dict[str, Any] = {"attention": {"kind": "mlra"}}


def measured(layout: Layout, model: dict[str, Any]) -> tuple[list[float], list[int], list[tuple[int, int]]]:
    """Elements that are measured of each matrix over all ranks, those that it has, and (number, elements) of every
    part on this rank."""
    config = make_config(layout, **model)
    config = config.model_copy(update={"optimizer": LARSConfig(learning_rate=0.1)})
    mesh = make_mesh(config.parallel)
    optimizer = make_engine(config, mesh).optimizer
    assert isinstance(optimizer, LayerwiseOptimizer)
    matrices = optimizer.matrices
    assert isinstance(matrices, Matrices)
    counts = torch.zeros(matrices.count, dtype=torch.float64)
    parts = [part for own in matrices.parts.values() for part in own]
    for part in parts:
        counts[part.number] += part.length if part.measured else 0
    sizes = [
        last - first
        for size in matrix_sizes(config.model.outline(config.data)).values()
        for first, last in borders(size, 1)
    ]
    return mesh.agree_sum(counts).tolist(), sizes, [(part.number, part.length) for part in parts]


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        (Layout(), LLAMA),
        (Layout(tensor=2, data=2), MLRA),
        (Layout(pipeline=2, data=2, accumulation=3), GPT2),
        slow(Layout(tensor=2, pipeline=2, zero=1, accumulation=3), LLAMA),
        (Layout(data=3, zero=2), LLAMA),
        slow(Layout(data=3, zero=3), LLAMA),
        (Layout(dtype="bf16", tensor=2, data=2, zero=1), MLRA),
        slow(Layout(dtype="bf16", pipeline=2, data=2, zero=1, accumulation=3), GPT2),
    ],
    ids=str,
)
def test_every_element_is_measured_once(layout: Layout, model: dict[str, Any]) -> None:
    for counts, sizes, parts in run_distributed(measured, layout.world_size, layout, model):
        assert counts == sizes
        numbers = [number for number, _ in parts]
        assert len(numbers) == len(set(numbers)), "a rank has one part of a matrix"


def test_query_key_and_value_are_matrices_of_their_own() -> None:
    ((_, sizes, parts),) = run_distributed(measured, 1, Layout(), LLAMA)
    hidden, key, wide = 32 * 32, 16 * 32, 128 * 32
    assert sizes[1:8] == [hidden, key, key, hidden, wide, wide, wide]
    assert sorted(parts) == list(enumerate(sizes))
