"""Vocabulary-parallel embedding and head, with the cross-entropy, equal the unsharded ones; padding is out of the way.

B  samples, S  tokens, D  hidden size, V  padded vocabulary
"""

import pytest
import torch
from support.distributed import run_distributed
from support.training import make_mesh
from torch import Tensor
from torch.nn import functional as F

from parallel.config import ParallelConfig
from parallel.cross_entropy import NO_SMOOTHING, Smoothing, vocabulary_parallel_cross_entropy
from parallel.initialization import Normal
from parallel.vocab import (
    VocabularyParallelEmbedding,
    VocabularyParallelHead,
    vocabulary_parallel_argmax,
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
    computed = logits.detach().clone()
    loss = vocabulary_parallel_cross_entropy(logits, tokens(2), mesh.tensor, smoothing)
    loss.backward(torch.linspace(-1, 2, loss.numel()).view_as(loss))
    return {
        "embedding": torch.cat(mesh.gather(embedding.weight.detach())),
        "head": torch.cat(mesh.gather(head.weight.detach())),
        "x": x.detach(),
        "logits": torch.cat(mesh.gather(computed), dim=-1),
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
