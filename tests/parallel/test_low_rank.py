"""Products of low rank equal two plain matrices, forward and backward, however they are cut.

B  samples, S  tokens, I  input features, R  rank, O  output features of all products
"""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.traffic import Call, recorded
from support.training import make_mesh
from torch import Tensor

from parallel.config import ParallelConfig
from parallel.initialization import Normal
from parallel.linear import ColumnParallelLinear
from parallel.low_rank import DownProjection, Factors, LowRankLinear
from parallel.mesh import ParallelMesh

SHAPE, INPUTS, RANK, ROWS = (3, 5), 12, 8, (16, 8, 8)
LAYOUTS = list(product((1, 2, 4), ("replicated", "sharded")))
Outcome = dict[str, Tensor]


def factors() -> list[Factors]:
    return [
        Factors(rows, Normal(3, f"down{i}", 0.5), Normal(3, f"up{i}", 0.5)) for i, rows in enumerate(ROWS)
    ]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_layer(mesh: ParallelMesh, down_projection: DownProjection) -> LowRankLinear:
    layer = LowRankLinear(
        INPUTS, RANK, factors(), bias=True, down_projection=down_projection, tensor=mesh.tensor
    )
    with torch.no_grad():
        for index, up in enumerate(layer.up):  # biases of 0 would hide mistakes
            up.bias.copy_(random(ROWS[index], seed=index).chunk(mesh.tensor.size)[mesh.tensor.rank])
    return layer


def whole_down(mesh: ParallelMesh, layer: LowRankLinear, value: Tensor) -> Tensor:
    """The stacked D, or its gradient, from what the ranks hold."""
    held = mesh.gather(value)
    if layer.sharded:
        parts = [rank.split(layer.down.local_blocks) for rank in held]
        return torch.cat([torch.cat(blocks) for blocks in zip(*parts, strict=True)])
    assert all(torch.equal(copy, held[0]) for copy in held), "copies differ"
    return held[0]


def outcome(size: int, down_projection: DownProjection) -> Outcome:
    mesh = make_mesh(ParallelConfig(tensor=size))
    layer = make_layer(mesh, down_projection)
    x = random(*SHAPE, INPUTS, seed=1).requires_grad_()
    outputs = layer(x)
    cut = [
        g.chunk(size, dim=-1)[mesh.tensor.rank] for g in random(*SHAPE, sum(ROWS), seed=2).split(ROWS, dim=-1)
    ]
    torch.autograd.backward(outputs, cut)

    def rows(values: list[Any]) -> Tensor:
        return torch.cat([torch.cat(mesh.gather(value.detach())) for value in values])

    folded = layer.fold()
    return {
        "output": torch.cat([torch.cat(mesh.gather(y.detach()), dim=-1) for y in outputs], dim=-1),
        "down": whole_down(mesh, layer, layer.down.weight.detach()),
        "up": rows([up.weight for up in layer.up]),
        "input_grad": x.grad,
        "down_grad": whole_down(mesh, layer, layer.down.weight.grad),
        "up_grad": rows([up.weight.grad for up in layer.up]),
        "bias_grad": rows([up.bias.grad for up in layer.up]),
        "folded_weight": rows([weight for weight, _ in folded]),
        "folded_bias": rows([bias for _, bias in folded]),
    }


def reference() -> Outcome:
    """Two matrices a product, in float64."""
    downs = [f.down.rows(0, RANK, RANK, INPUTS).double().requires_grad_() for f in factors()]
    ups = [f.up.rows(0, f.rows, f.rows, RANK).double().requires_grad_() for f in factors()]
    biases = [random(rows, seed=i).double().requires_grad_() for i, rows in enumerate(ROWS)]
    x = random(*SHAPE, INPUTS, seed=1).double().requires_grad_()
    y = torch.cat([x @ d.T @ u.T + b for d, u, b in zip(downs, ups, biases, strict=True)], dim=-1)
    y.backward(random(*SHAPE, sum(ROWS), seed=2).double())
    products = [u @ d for u, d in zip(ups, downs, strict=True)]
    return {
        "output": y.detach(),
        "down": torch.cat(downs).detach(),
        "up": torch.cat(ups).detach(),
        "input_grad": x.grad,
        "down_grad": torch.cat([d.grad for d in downs]),
        "up_grad": torch.cat([u.grad for u in ups]),
        "bias_grad": torch.cat([b.grad for b in biases]),
        "folded_weight": torch.cat(products).detach(),
        "folded_bias": torch.cat(biases).detach(),
    }


@pytest.mark.parametrize(("size", "down_projection"), LAYOUTS)
def test_every_layout_equals_plain_float64(size: int, down_projection: DownProjection) -> None:
    expected = reference()
    for rank, found in enumerate(run_distributed(outcome, size, size, down_projection)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name].double(),
                value,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda text, name=name, rank=rank: f"{name} on {rank}: {text}",
            )


def initial_weights(size: int, down_projection: DownProjection) -> tuple[Tensor, Tensor]:
    found = outcome(size, down_projection)
    return found["down"], found["up"]


@pytest.mark.parametrize(("size", "down_projection"), LAYOUTS)
def test_initial_weights_do_not_depend_on_the_layout(size: int, down_projection: DownProjection) -> None:
    ((down, up),) = run_distributed(initial_weights, 1, 1, "replicated")
    for found in run_distributed(initial_weights, size, size, down_projection):
        assert torch.equal(found[0], down)
        assert torch.equal(found[1], up)


def collectives(down_projection: DownProjection) -> tuple[dict[str, int], dict[str, int]]:
    """Elements that the forward and the backward pass hand to each collective."""
    mesh = make_mesh(ParallelConfig(tensor=2))
    layer = make_layer(mesh, down_projection)
    x = random(*SHAPE, INPUTS, seed=1).requires_grad_()
    with recorded() as forward:
        outputs = layer(x)
    with recorded() as backward:
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    return elements(forward), elements(backward)


def elements(calls: list[Call]) -> dict[str, int]:
    seen: Counter[str] = Counter()
    for call in calls:
        seen[call.kind] += call.bytes // 4
    return dict(seen)


def test_traffic_is_what_the_docs_say() -> None:
    """One collective for all products: replicated 3 R numbers a token; sharded twice that, and the input's I."""
    tokens = SHAPE[0] * SHAPE[1]
    latents = tokens * len(ROWS) * RANK
    assert run_distributed(collectives, 2, "replicated") == [({}, {"all_reduce": latents})] * 2
    forward, backward = run_distributed(collectives, 2, "sharded")[0]
    assert forward == {"all_gather": latents}
    assert backward == {"reduce_scatter": latents, "all_reduce": tokens * INPUTS}


def dense_and_folded(down_projection: DownProjection) -> tuple[Tensor, Tensor]:
    mesh = make_mesh(ParallelConfig(tensor=2))
    layer = make_layer(mesh, down_projection)
    dense = ColumnParallelLinear(
        INPUTS, [(rows, Normal(9, "other", 1.0)) for rows in ROWS], bias=True, tensor=mesh.tensor
    )
    weights, biases = zip(*layer.fold(), strict=True)
    with torch.no_grad():
        dense.weight.copy_(torch.cat(weights))
        dense.bias.copy_(torch.cat(biases))
        x = random(*SHAPE, INPUTS, seed=4)
        return torch.cat(layer(x), dim=-1), dense(x)


@pytest.mark.parametrize("down_projection", ["replicated", "sharded"])
def test_folded_is_the_dense_layer_of_the_same_rank(down_projection: DownProjection) -> None:
    for unfolded, folded in run_distributed(dense_and_folded, 2, down_projection):
        torch.testing.assert_close(folded, unfolded)
