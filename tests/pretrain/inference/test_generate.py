"""Text that a model writes: the same for the same seed, with a cache as without, whatever its length."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from support.tensors import loaded_model
from support.training import SEQUENCE, VOCABULARY, Layout, make_config
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer, train_tokenizer
from parallel.mesh import ParallelMesh
from pretrain.inference.generate import continuation, next_tokens
from pretrain.inference.model import LoadedModel
from pretrain.inference.sampling import Sampler, Sampling
from pretrain.tasks.gpt.text import TokenizedText

PROMPT = [3, 150, 77, 8]
LIMIT = 3 * SEQUENCE
"""The window is left behind more than once."""
DRAWN = Sampling(temperature=0.7, top_k=40, top_p=0.9, seed=5)


@pytest.fixture(scope="module", params=["rotary", "learned"])
def model(request: pytest.FixtureRequest, alone: ParallelMesh) -> LoadedModel:
    return loaded_model(
        make_config(Layout(), positions=request.param, tied_embeddings=False), alone, factor=4.0
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["the run keeps its feet while loss falls and every rank agrees on what it saw\n" * 20]
    return train_tokenizer(texts, VOCABULARY)


@torch.no_grad()
def without_cache(model: LoadedModel, prompt: list[int], sampler: Sampler, limit: int) -> Iterator[int]:
    """The model sees all tokens anew for each further one."""
    seen, visible = list(prompt), min(len(prompt), SEQUENCE)
    for _ in range(limit):
        logits = model.layers(torch.tensor([seen[-visible:]]))
        assert isinstance(logits, Tensor)
        token = sampler.choose(logits[0, -1])
        yield token
        seen.append(token)
        visible = visible + 1 if visible < SEQUENCE else SEQUENCE // 2


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT * SEQUENCE], ids=["short", "longer than the window"])
def test_a_cache_changes_nothing(model: LoadedModel, sampling: Sampling, prompt: list[int]) -> None:
    found = list(next_tokens(model, SEQUENCE, prompt, Sampler(sampling), LIMIT))
    assert found == list(without_cache(model, prompt, Sampler(sampling), LIMIT))
    assert len(set(found)) > 1
    assert max(found) < VOCABULARY, "padding is never predicted"


def test_the_seed_decides(model: LoadedModel) -> None:
    def tokens(seed: int) -> list[int]:
        return list(next_tokens(model, SEQUENCE, PROMPT, Sampler(Sampling(seed=seed)), 20))

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_every_token_is_given_at_once(model: LoadedModel) -> None:
    """Who reads two of a million tokens does not wait for the others."""
    endless = next_tokens(model, SEQUENCE, PROMPT, Sampler(DRAWN), 10**9)
    assert list(islice(endless, 2)) == list(next_tokens(model, SEQUENCE, PROMPT, Sampler(DRAWN), 2))


def text_of(
    model: LoadedModel, tokenizer: Tokenizer, prompt: str, sampling: Sampling, limit: int = 60
) -> list[str]:
    codec = TokenizedText(tokenizer, SEQUENCE)
    return list(continuation(model, codec, prompt, sampling, limit))


def test_text_is_that_of_the_tokens(model: LoadedModel, tokenizer: Tokenizer) -> None:
    """A prompt is the beginning of a text, as end-of-text says before it; whole characters come alone."""
    parts = text_of(model, tokenizer, "the run", DRAWN)
    prompt = [tokenizer.end_of_text, *tokenizer.encode("the run")]
    tokens = list(next_tokens(model, SEQUENCE, prompt, Sampler(DRAWN), 60))
    if tokenizer.end_of_text in tokens:
        tokens = tokens[: tokens.index(tokenizer.end_of_text)]
    assert "".join(parts) == tokenizer.decode(tokens)
    assert all(parts)
    assert "".join(parts).encode().decode() == "".join(parts)


def test_end_of_text_ends_it(
    model: LoadedModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = iter([*tokenizer.encode("rank"), tokenizer.end_of_text, *tokenizer.encode("x")])
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(chosen))
    assert "".join(text_of(model, tokenizer, "", DRAWN)) == "rank"
    assert list(chosen) == tokenizer.encode("x")


def test_characters_are_not_cut_at_the_limit(
    model: LoadedModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = iter(tokenizer.encode("日")[:2])
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(chosen))
    assert "".join(text_of(model, tokenizer, "", DRAWN, limit=2)) == "\N{REPLACEMENT CHARACTER}" * 2


def test_nothing_is_text_too(model: LoadedModel, tokenizer: Tokenizer) -> None:
    assert text_of(model, tokenizer, "the run", DRAWN, limit=0) == []
    assert text_of(model, tokenizer, "", Sampling(temperature=2.0))


def test_a_large_window_takes_no_more_memory_than_is_written(model: LoadedModel) -> None:
    wide = list(next_tokens(model, 10**15, PROMPT, Sampler(DRAWN), 5))
    assert wide == list(next_tokens(model, len(PROMPT) + 5, PROMPT, Sampler(DRAWN), 5))
