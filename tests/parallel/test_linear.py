"""Tensor-parallel linear layers equal one matrix, forward and backward.

B  samples, I  input features, O  output features
"""

from collections.abc import Sequence

import pytest
import torch
from support.distributed import run_distributed
from support.training import make_mesh
from torch import Tensor

from parallel import linear
from parallel.config import ParallelConfig
from parallel.initialization import Normal
from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.mesh import ParallelMesh

BATCH, INPUTS, STACKED = 5, 12, (16, 8, 8)


def blocks() -> list[tuple[int, Normal]]:
    return [(rows, Normal(3, f"block{i}", 0.5)) for i, rows in enumerate(STACKED)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gather_blocks(mesh: ParallelMesh, shard: Tensor, local_rows: Sequence[int]) -> Tensor:
    """The full stacked matrix from all ranks' shards, dimension 0."""
    parts = [rank_shard.split(list(local_rows)) for rank_shard in mesh.gather(shard)]
    return torch.cat([torch.cat([part[i] for part in parts]) for i in range(len(local_rows))])


def column_outcome(size: int) -> dict[str, Tensor]:
    mesh = make_mesh(ParallelConfig(tensor=size))
    layer = ColumnParallelLinear(INPUTS, blocks(), bias=True, tensor=mesh.tensor)
    x = random(BATCH, INPUTS, seed=1).requires_grad_()
    y = layer(x)
    rows = layer.local_blocks
    full_grad = random(BATCH, sum(STACKED), seed=2).split(STACKED, dim=1)
    start = mesh.tensor.rank
    y.backward(
        torch.cat([g[:, start * r : (start + 1) * r] for g, r in zip(full_grad, rows, strict=True)], dim=1)
    )
    assert layer.weight.grad is not None
    assert x.grad is not None
    return {
        "weight": gather_blocks(mesh, layer.weight.detach(), rows),
        "output": gather_blocks(mesh, y.detach().T.contiguous(), rows),
        "weight_grad": gather_blocks(mesh, layer.weight.grad, rows),
        "bias_grad": gather_blocks(mesh, layer.bias.grad, rows),
        "input_grad": x.grad,
    }


def row_outcome(size: int) -> dict[str, Tensor]:
    mesh = make_mesh(ParallelConfig(tensor=size))
    layer = RowParallelLinear(INPUTS, 6, Normal(3, "row", 0.5), bias=True, tensor=mesh.tensor)
    width = INPUTS // size
    own = slice(mesh.tensor.rank * width, (mesh.tensor.rank + 1) * width)
    x = random(BATCH, INPUTS, seed=1)[:, own].requires_grad_()
    y = layer(x)
    y.backward(random(BATCH, 6, seed=2))
    return {
        "weight": torch.cat(mesh.gather(layer.weight.detach()), dim=1),
        "output": y.detach(),
        "weight_grad": torch.cat(mesh.gather(layer.weight.grad), dim=1),
        "bias_grad": layer.bias.grad,
        "input_grad": torch.cat(mesh.gather(x.grad), dim=1),
    }


@pytest.mark.parametrize("outcome", [column_outcome, row_outcome])
@pytest.mark.parametrize("size", [2, 4])
def test_sharded_equals_unsharded(outcome, size: int) -> None:
    (whole,) = run_distributed(outcome, 1, 1)
    for rank, sharded in enumerate(run_distributed(outcome, size, size)):
        assert torch.equal(sharded["weight"], whole["weight"])
        for name, value in whole.items():
            torch.testing.assert_close(
                sharded[name], value, msg=lambda text, name=name, rank=rank: f"{name} on {rank}: {text}"
            )


def test_unsharded_is_a_plain_linear_layer() -> None:
    (outcome,) = run_distributed(column_outcome, 1, 1)
    weight = (
        torch.cat([init.rows(0, rows, rows, INPUTS) for rows, init in blocks()]).double().requires_grad_()
    )
    x = random(BATCH, INPUTS, seed=1).double()
    y = x @ weight.T
    y.backward(random(BATCH, sum(STACKED), seed=2).double())
    assert weight.grad is not None
    torch.testing.assert_close(outcome["weight"], weight.detach().float())
    torch.testing.assert_close(outcome["output"].T, y.detach().float())
    torch.testing.assert_close(outcome["weight_grad"], weight.grad.float())


@pytest.mark.parametrize("divided", [False, True])
def test_of_a_weight_that_zero_3_divides_no_view_is_kept(divided: bool) -> None:
    """A view would hold the memory of the whole weight after ZeRO-3 has given it back."""
    weight, bias = torch.nn.Parameter(random(4, 3, seed=1)), torch.nn.Parameter(random(4, seed=2))
    if divided:
        weight.ds_id = 0
    x, kept = random(2, 5, 3, seed=3).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        y = linear.product(x, weight, bias)
    views = [t for t in kept if t is not weight and t.data_ptr() == weight.data_ptr()]
    assert bool(views) == (not divided)
    found = torch.autograd.grad(y.square().sum(), (x, weight, bias))
    expected = torch.autograd.grad((x @ weight.T + bias).square().sum(), (x, weight, bias))
    torch.testing.assert_close(found, expected)
