"""The cross-entropy equals torch's in float64, in each way it is computed, and holds nothing but the logits.

B  samples, S  tokens, V  padded vocabulary
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support.distributed import run_distributed
from support.training import make_mesh
from torch import Tensor
from torch.nn import functional as F

from parallel import cross_entropy
from parallel.config import ParallelConfig
from parallel.cross_entropy import NO_SMOOTHING, Smoothing, vocabulary_parallel_cross_entropy

BATCH, LENGTH, VOCABULARY, PADDED = 2, 7, 50, 64
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2**-8}
"""Of gradients, which are rounded to the dtype of the logits."""


@contextmanager
def computed(*, fused: bool, at_once: int) -> Iterator[None]:
    """Within it the cross-entropy is computed as on another device, some logits at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "fuses", lambda logits, tensor: fused)
        patch.setattr(cross_entropy, "_LOGITS_AT_ONCE_ON_CPU", at_once)
        yield


def targets(vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randint(0, vocabulary, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))


def drawn(dtype: torch.dtype = torch.float64, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with padding, a direction, and weights."""
    generator = torch.Generator().manual_seed(4)
    logits, direction = torch.randn(2, BATCH, LENGTH, PADDED, generator=generator, dtype=torch.float64) * 2
    logits[..., vocabulary:] = float("-inf")
    weights = torch.linspace(-1, 2, BATCH * LENGTH, dtype=torch.float64).view(BATCH, LENGTH)
    return logits.to(dtype), direction, weights


def loss_and_gradient(
    size: int, dtype: torch.dtype, smoothing: Smoothing, vocabulary: int, fused: bool, at_once: int
) -> tuple[Tensor, Tensor]:
    mesh = make_mesh(ParallelConfig(tensor=size))
    logits, _, weights = drawn(dtype, vocabulary)
    own = logits.chunk(size, dim=-1)[mesh.tensor.rank].clone().requires_grad_()
    with computed(fused=fused, at_once=at_once):
        loss = vocabulary_parallel_cross_entropy(own * 1, targets(vocabulary), mesh.tensor, smoothing)
        (loss * weights).sum().backward()
    assert own.grad is not None
    return loss.detach(), torch.cat(mesh.gather(own.grad), dim=-1)


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize(
    ("size", "vocabulary", "fused", "at_once"),
    [(1, 50, True, 200), (1, 50, False, 200), (2, 50, False, 10**6), (4, 20, False, 100)],
    ids=str,
)
def test_equals_float64(size: int, vocabulary: int, fused: bool, at_once: int, share: float) -> None:
    """On four ranks the last two have no real row. Losses are fp32 at least, gradients of the dtype of the logits."""
    for dtype, tolerance in TOLERANCE.items():
        logits, _, weights = drawn(dtype, vocabulary)
        real = logits[..., :vocabulary].double().requires_grad_()
        expected = F.cross_entropy(
            real.transpose(1, 2), targets(vocabulary), reduction="none", label_smoothing=share
        )
        (expected * weights).sum().backward()
        smoothing = Smoothing(share, vocabulary)
        for loss, gradient in run_distributed(
            loss_and_gradient, size, size, dtype, smoothing, vocabulary, fused, at_once
        ):
            assert loss.dtype == torch.promote_types(dtype, torch.float32)
            assert gradient.dtype == dtype
            assert not gradient[..., vocabulary:].any()
            exact = 1e-13 if dtype == torch.float64 else 1e-6
            torch.testing.assert_close(loss.double(), expected.detach(), rtol=exact, atol=exact)
            torch.testing.assert_close(
                gradient[..., :vocabulary].double(), real.grad, rtol=tolerance, atol=tolerance * 1e-2
            )


def second_derivatives(size: int, share: float, fused: bool) -> list[Tensor]:
    """It returns the gradient and its derivative along a direction of a weighted loss, by all logits, float64."""
    mesh = make_mesh(ParallelConfig(tensor=size))
    logits, direction, weights = drawn()
    own = logits.chunk(size, dim=-1)[mesh.tensor.rank].clone().requires_grad_()
    with computed(fused=fused, at_once=200):
        loss = vocabulary_parallel_cross_entropy(
            own * 1, targets(), mesh.tensor, Smoothing(share, VOCABULARY)
        )
        (gradient,) = torch.autograd.grad((loss * weights).sum(), own, create_graph=True)
        slope = (gradient * direction.chunk(size, dim=-1)[mesh.tensor.rank]).sum()
        (product,) = torch.autograd.grad(slope, own)
    return [torch.cat(mesh.gather(part.detach()), dim=-1) for part in (gradient, product)]


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize(("size", "fused"), [(1, False), (1, True), (2, False)])
def test_it_is_differentiable_twice(size: int, fused: bool, share: float) -> None:
    """In float64 it is computed in float64, too."""
    logits, direction, weights = drawn()
    real = logits[..., :VOCABULARY].requires_grad_()
    loss = F.cross_entropy(real.transpose(1, 2), targets(), reduction="none", label_smoothing=share)
    (gradient,) = torch.autograd.grad((loss * weights).sum(), real, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction[..., :VOCABULARY]).sum(), real)
    for found in run_distributed(second_derivatives, size, size, share, fused):
        for ours, theirs in zip(found, (gradient, product), strict=True):
            torch.testing.assert_close(ours[..., :VOCABULARY], theirs.detach(), rtol=1e-12, atol=1e-14)
            assert not ours[..., VOCABULARY:].any()


def bytes_kept(fused: bool) -> tuple[int, bool]:
    """It returns the bytes that are kept for the backward pass, and whether the gradient lies where the logits did."""
    mesh = make_mesh(ParallelConfig())
    logits = drawn(torch.bfloat16)[0].requires_grad_() * 1
    kept: dict[int, int] = {}
    places: list[int] = []
    logits.register_hook(lambda gradient: places.append(gradient.data_ptr()))

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with computed(fused=fused, at_once=200):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = vocabulary_parallel_cross_entropy(logits, targets(), mesh.tensor, NO_SMOOTHING).sum()
        loss.backward()
    return sum(kept.values()), places == [logits.data_ptr()]


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_but_the_logits_is_kept(fused: bool) -> None:
    """Beside them there are at most four numbers a token in fp32."""
    for kept, in_place in run_distributed(bytes_kept, 1, fused):
        assert kept <= BATCH * LENGTH * (2 * PADDED + 4 * 4)
        assert in_place


def overwritten() -> str:
    """What is said of a second backward pass through logits that the first has overwritten."""
    mesh = make_mesh(ParallelConfig())
    leaf = drawn()[0].requires_grad_()
    loss = vocabulary_parallel_cross_entropy(leaf * 1, targets(), mesh.tensor).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError) as raised:
        loss.backward()
    return str(raised.value)


def test_a_second_backward_pass_is_refused() -> None:
    assert "modified by an inplace operation" in run_distributed(overwritten, 1)[0]


def of_a_leaf() -> bool:
    """Whether logits that were not computed survive a backward pass, and those that others are a view of."""
    mesh = make_mesh(ParallelConfig())
    leaf = drawn()[0].requires_grad_()
    for logits in (leaf, leaf[:1]):
        vocabulary_parallel_cross_entropy(logits, targets()[: len(logits)], mesh.tensor).sum().backward()
    return leaf.equal(drawn()[0])


def test_leaves_are_left_alone() -> None:
    assert run_distributed(of_a_leaf, 1) == [True]
