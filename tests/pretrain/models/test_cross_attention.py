"""Cross-attention equals plain formulas in float64, forward and backward, and is the same over tensor ranks.

B  samples, T  tokens that ask, S  states, D  hidden size
"""

from functools import lru_cache
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.training import Layout, make_config, make_mesh
from torch import Tensor

from parallel.low_rank import ReplicatedLinear
from parallel.rng import RandomStreams
from pretrain.models.attention import BlockPass
from pretrain.models.context import LayerContext, Materials
from pretrain.models.cross_attention import CrossAttention
from pretrain.runtime.kernels import detect_kernels

B, T, S, D = 3, 7, 11, 32
MODELS: dict[str, dict[str, Any]] = {
    "dense": {},
    "grouped": {"attention": {"num_key_value_heads": 2}, "bias": False},
    "mlra": {"attention": {"kind": "mlra", "rank": 12}},
    "mlra_sharded": {"attention": {"kind": "mlra", "rank": 12, "down_projection": "sharded"}},
}
Answer = dict[str, Tensor]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def real() -> Tensor:
    return torch.arange(S) < torch.tensor([S, 5, 1])[:, None]


def make(name: str, tensor: int, **model: Any) -> tuple[CrossAttention, RandomStreams]:
    """With weights that are large enough to tell keys apart."""
    config = make_config(Layout(tensor=tensor), init_std=0.3, **{**MODELS[name], **model})
    mesh = make_mesh(config.parallel)
    streams = RandomStreams(5, mesh)
    context = LayerContext(config.model, Materials(mesh, streams, detect_kernels(), seed=1))
    return CrossAttention(context, "cross"), streams


def answer(name: str, tensor: int) -> Answer:
    """Output, gradients of both inputs, and those of weights, of sharded ones this rank's part."""
    module, _ = make(name, tensor)
    x, states = draw(B, T, D, seed=1).requires_grad_(), draw(B, S, D, seed=2).requires_grad_()
    y = module(x, states, BlockPass(), real(), None)
    y.backward(draw(B, T, D, seed=3))
    assert x.grad is not None
    assert states.grad is not None
    found = {"y": y.detach(), "x": x.grad, "states": states.grad}
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        found[key] = parameter.grad
    for part, linear in module.named_modules():
        if isinstance(linear, ReplicatedLinear):
            assert not getattr(linear.weight, "tensor_model_parallel", False), part
    return found


def matrices(module: CrossAttention) -> tuple[list[Tensor], list[Tensor | None]]:
    """Weights and biases of queries, keys and values as dense ones, float64, with gradients."""
    if hasattr(module.query, "linear"):
        layers = (module.query.linear, module.key_value.linear)
        blocks = [(m.weight.split(m.local_blocks), m.bias, m.local_blocks) for m in layers]
        weights = [w for split, _, _ in blocks for w in split]
        biases = [b for _, bias, sizes in blocks for b in (bias.split(sizes) if bias is not None else [None] * len(sizes))]  # noqa: E501  # fmt: skip
    else:
        weights, biases = [], []
        for projection in (module.query, module.key_value):
            for up, down in zip(projection.up, projection.down.weight.chunk(len(projection.up)), strict=True):
                weights.append(up.weight.double() @ down.double())
                biases.append(up.bias)
    return [w.double() for w in weights], [None if b is None else b.double() for b in biases]


def plain(name: str) -> Answer:
    """The formulas, in one process: softmax over the real states, head by head."""
    module, _ = make(name, 1)
    config = make_config(Layout(), **MODELS[name]).model
    size, heads = config.head_size, config.attention.num_heads
    shared = heads // config.num_key_value_heads
    x, states = draw(B, T, D, seed=1).double(), draw(B, S, D, seed=2).double()
    x, states = x.requires_grad_(), states.requires_grad_()
    weights, biases = matrices(module)
    q, k, v = (
        source @ weight.T + (0 if bias is None else bias)
        for source, weight, bias in zip((x, states, states), weights, biases, strict=True)
    )
    parts = []
    for head in range(heads):
        group = slice(head // shared * size, (head // shared + 1) * size)
        logits = q[..., head * size : (head + 1) * size] @ k[..., group].mT / size**0.5
        weights_BTS = logits.masked_fill(~real()[:, None, :], -torch.inf).softmax(-1)
        parts.append(weights_BTS @ v[..., group])
    output = module.output
    y = torch.cat(parts, -1) @ output.weight.double().T
    y = y if output.bias is None else y + output.bias.double()
    y.backward(draw(B, T, D, seed=3).double())
    assert x.grad is not None
    assert states.grad is not None
    found = {"y": y.detach(), "x": x.grad, "states": states.grad}
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        found[key] = parameter.grad
    return found


@lru_cache
def alone(name: str) -> Answer:
    (found,) = run_distributed(answer, 1, name, 1)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_output_and_gradients_equal_the_formulas(name: str) -> None:
    (expected,) = run_distributed(plain, 1, name)
    assert expected.keys() == alone(name).keys()
    for key, value in expected.items():
        torch.testing.assert_close(alone(name)[key].double(), value.double(), rtol=1e-4, atol=2e-5, msg=key)


def whole(name: str, key: str, parts: list[Tensor]) -> Tensor:
    """A gradient over two ranks as one process has it."""
    if key in ("y", "x", "states", "output.bias") or (key.endswith("down.weight") and name == "mlra"):
        torch.testing.assert_close(*parts, rtol=0, atol=0)
        return parts[0]
    if key == "output.weight":
        return torch.cat(parts, 1)
    stack = 2 if key.startswith("key_value") and "up" not in key else 1
    return torch.cat([torch.cat(pair) for pair in zip(*(p.chunk(stack) for p in parts), strict=True)])


@pytest.mark.parametrize("name", MODELS)
def test_two_tensor_ranks_compute_what_one_does(name: str) -> None:
    answers = run_distributed(answer, 2, name, 2)
    for key, value in alone(name).items():
        found = whole(name, key, [one[key] for one in answers])
        torch.testing.assert_close(found, value, rtol=1e-4, atol=2e-5, msg=key)


def dropped(tensor: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Outputs with a mask, with the same mask again, and with another one."""
    module, streams = make("dense", tensor, attention={"dropout": 0.4})
    x, states = draw(B, T, D, seed=1), draw(B, S, D, seed=2)
    streams.begin_step(1)
    first, second = streams.draw("cross"), streams.draw("cross")
    with torch.no_grad():
        return [tuple(module(x, states, BlockPass(mask)) for mask in (first, first, second))]  # type: ignore[list-item]


@pytest.mark.parametrize("tensor", [1, 2])
def test_dropout_goes_by_its_seed(tensor: int) -> None:
    for ((first, again, other),) in run_distributed(dropped, tensor, tensor):
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)


def in_either_order() -> tuple[Tensor, Tensor]:
    """Heads that are not rotated: an order of the states plays no part."""
    module, _ = make("dense", 1)
    x, states = draw(B, T, D, seed=1), draw(B, S, D, seed=2)
    with torch.no_grad():
        return module(x, states, BlockPass()), module(x, states.flip(1), BlockPass())


def test_states_have_no_order() -> None:
    ((one, other),) = run_distributed(in_either_order, 1)
    torch.testing.assert_close(one, other)
