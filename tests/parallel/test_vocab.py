"""Vocabulary-parallel embedding, head and cross-entropy equal the unsharded ones, with padding out of the way.

B  samples, S  tokens, D  hidden size, V  padded vocabulary
"""

import pytest
import torch
from support.distributed import run_distributed
from support.training import make_mesh
from torch import Tensor
from torch.nn import functional as F

from parallel.config import ParallelConfig
from parallel.initialization import Normal
from parallel.vocab import (
    NO_SMOOTHING,
    Smoothing,
    VocabularyParallelEmbedding,
    VocabularyParallelHead,
    vocabulary_parallel_argmax,
    vocabulary_parallel_cross_entropy,
)

BATCH, LENGTH, HIDDEN, VOCABULARY, PADDED = 2, 7, 12, 50, 64
INIT = Normal(3, "embedding", 0.5)


def tokens(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)


def outcome(size: int, smoothing: Smoothing = NO_SMOOTHING) -> dict[str, Tensor]:
    mesh = make_mesh(ParallelConfig(tensor=size))
    embedding = VocabularyParallelEmbedding(VOCABULARY, PADDED, HIDDEN, INIT, mesh.tensor)
    head = VocabularyParallelHead(VOCABULARY, PADDED, HIDDEN, Normal(3, "head", 0.5), mesh.tensor)
    x = embedding(tokens(1))
    logits = head(x)
    loss = vocabulary_parallel_cross_entropy(logits, tokens(2), mesh.tensor, smoothing)
    loss.backward(torch.linspace(-1, 2, loss.numel()).view_as(loss))
    return {
        "embedding": torch.cat(mesh.gather(embedding.weight.detach())),
        "head": torch.cat(mesh.gather(head.weight.detach())),
        "x": x.detach(),
        "logits": torch.cat(mesh.gather(logits.detach()), dim=-1),
        "loss": loss.detach(),
        "embedding_grad": torch.cat(mesh.gather(embedding.weight.grad)),
        "head_grad": torch.cat(mesh.gather(head.weight.grad)),
    }


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_equals_plain_float64(size: int, share: float) -> None:
    """On four ranks the last one has two real rows; what is smoothed goes to the real rows alone."""
    for result in run_distributed(outcome, size, size, Smoothing(share, VOCABULARY)):
        table = INIT.rows(0, VOCABULARY, PADDED, HIDDEN).double().requires_grad_()
        head = Normal(3, "head", 0.5).rows(0, VOCABULARY, PADDED, HIDDEN).double().requires_grad_()
        logits = table[tokens(1)] @ head.T
        loss = F.cross_entropy(logits.transpose(1, 2), tokens(2), reduction="none", label_smoothing=share)
        loss.backward(torch.linspace(-1, 2, loss.numel()).view_as(loss).double())
        expected = {
            "embedding": table,
            "head": head,
            "loss": loss,
            "embedding_grad": table.grad,
            "head_grad": head.grad,
        }
        for name, value in expected.items():
            assert value is not None
            actual = result[name] if name == "loss" else result[name][:VOCABULARY]
            torch.testing.assert_close(actual, value.detach().float(), msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_nothing_reaches_the_padding(size: int) -> None:
    for result in run_distributed(outcome, size, size):
        for name in ("embedding", "head", "embedding_grad", "head_grad"):
            assert not result[name][VOCABULARY:].any(), name
        assert (result["logits"][..., VOCABULARY:] == float("-inf")).all()


def bf16_loss(size: int) -> tuple[Tensor, Tensor]:
    mesh = make_mesh(ParallelConfig(tensor=size))
    logits = torch.randn(BATCH, LENGTH, PADDED, generator=torch.Generator().manual_seed(0)).bfloat16()
    own = logits.chunk(size, dim=-1)[mesh.tensor.rank].clone().requires_grad_()
    loss = vocabulary_parallel_cross_entropy(own, tokens(2), mesh.tensor)
    loss.sum().backward()
    assert own.grad is not None
    return loss.detach(), own.grad.dtype


def test_loss_of_bf16_logits_is_fp32() -> None:
    for loss, gradient_dtype in run_distributed(bf16_loss, 2, 2):
        assert loss.dtype == torch.float32
        assert gradient_dtype == torch.bfloat16


def best_tokens(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Found over `size` ranks, and by torch in the whole; in bf16 many logits are equal."""
    mesh = make_mesh(ParallelConfig(tensor=size))
    logits = torch.randn(BATCH, 50 * LENGTH, PADDED, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, 7] = 1.0
    own = logits.chunk(size, dim=-1)[mesh.tensor.rank]
    return vocabulary_parallel_argmax(own, mesh.tensor), logits.argmax(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_best_token_is_that_of_the_whole_vocabulary(size: int, dtype: torch.dtype) -> None:
    for found, expected in run_distributed(best_tokens, size, size, dtype):
        assert found.equal(expected)
        assert not found[:, 7].any()


def second_derivatives(size: int, share: float) -> list[Tensor]:
    """It returns the gradient and its derivative along a direction of a weighted loss, by all logits, float64."""
    mesh = make_mesh(ParallelConfig(tensor=size))
    logits, direction, weights = drawn()
    own = logits.chunk(size, dim=-1)[mesh.tensor.rank].clone().requires_grad_()
    loss = vocabulary_parallel_cross_entropy(own, tokens(2), mesh.tensor, Smoothing(share, VOCABULARY))
    (gradient,) = torch.autograd.grad((loss * weights).sum(), own, create_graph=True)
    slope = (gradient * direction.chunk(size, dim=-1)[mesh.tensor.rank]).sum()
    (product,) = torch.autograd.grad(slope, own)
    return [torch.cat(mesh.gather(part.detach()), dim=-1) for part in (gradient, product)]


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Logits with padding, a direction, and weights."""
    generator = torch.Generator().manual_seed(4)
    logits, direction = torch.randn(2, BATCH, LENGTH, PADDED, generator=generator, dtype=torch.float64) * 2
    logits[..., VOCABULARY:] = float("-inf")
    return logits, direction, torch.linspace(-1, 2, BATCH * LENGTH, dtype=torch.float64).view(BATCH, LENGTH)


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 2])
def test_it_is_differentiable_twice(size: int, share: float) -> None:
    """In float64 it is computed in float64, too."""
    logits, direction, weights = drawn()
    real = logits[..., :VOCABULARY].requires_grad_()
    loss = F.cross_entropy(real.transpose(1, 2), tokens(2), reduction="none", label_smoothing=share)
    (gradient,) = torch.autograd.grad((loss * weights).sum(), real, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction[..., :VOCABULARY]).sum(), real)
    for found in run_distributed(second_derivatives, size, size, share):
        for ours, theirs in zip(found, (gradient, product), strict=True):
            torch.testing.assert_close(ours[..., :VOCABULARY], theirs.detach(), rtol=1e-12, atol=1e-14)
            assert not ours[..., VOCABULARY:].any()
