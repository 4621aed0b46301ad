"""Translations are found with a cache as without one, whatever stands beside them, and the best one by a wide beam.

A  sources, S  tokens of the longest, T  tokens so far, V  vocabulary
"""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.tensors import loaded_model
from support.training import Layout, make_mesh
from support.translation import END, padded, sentences, translation_config
from torch import Tensor

from data_pipeline.translation.batch import PADDING
from parallel.mesh import ParallelMesh
from parallel.pipeline import SequentialLayers
from pretrain.errors import CheckpointError
from pretrain.inference.model import build_layers
from pretrain.inference.search import BeamSearch, Hypothesis, Search
from pretrain.models.cache import KeyValueCache, decode
from pretrain.tasks.translation.decoding import EncoderDecoder
from pretrain.tasks.translator import Ends

WORDS = 9
"""Size of the vocabularies: in large ones hardly anything ends that has not been trained."""
MODELS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post_sinusoidal_joint": {"norm_placement": "post", "positions": "sinusoidal", "embeddings": "joint"},
    "deepnorm_learned": {
        "norm_placement": "deepnorm",
        "positions": "learned",
        "target_vocabulary_size": WORDS - 1,
    },
    "none_mlra_sigma_grouped": {
        "norm_placement": "none",
        "reparametrization": "sigma",
        "attention": {"kind": "mlra", "rank": 6, "num_key_value_heads": 2},
    },
}
SIZES = {"source_vocabulary_size": WORDS, "target_vocabulary_size": WORDS, "embeddings": "separate"}
LONGEST = 12
"""Tokens of a translation, its end included."""
FEW = 6
"""Size of a vocabulary of which all sentences can be written down."""


def make(name: str = "pre", factor: float = 4.0, **model: Any) -> SequentialLayers:
    config = translation_config(Layout(), {**SIZES, **MODELS[name], **model})
    return loaded_model(config, ParallelMesh.alone(), seed=2, factor=factor).layers


def sources(count: int = 9, vocabulary: int = WORDS) -> list[list[int]]:
    drawn = sentences(count, 15, vocabulary, generator=torch.Generator().manual_seed(3))
    return [[*sentence, END] for sentence in drawn]


def search(
    model: SequentialLayers, rows: list[list[int]], longest: int = LONGEST, **how: Any
) -> list[list[Hypothesis]]:
    both, ends = EncoderDecoder(model), Ends(END, END, PADDING, longest)
    states = both.read(padded(rows))
    return BeamSearch(both.decoder, states, ends, Search(**how), ParallelMesh.alone().tensor).run()


def best(found: list[list[Hypothesis]]) -> list[list[int]]:
    return [hypotheses[0].tokens for hypotheses in found]


@torch.no_grad()
def log_probabilities(model: SequentialLayers, source: list[int], inputs: list[int]) -> Tensor:
    """It returns those of what follows each of the inputs, (T, V), without a cache."""
    logits_1TV = model(torch.tensor([source]), torch.tensor([inputs]))
    assert isinstance(logits_1TV, Tensor)
    return logits_1TV[0].log_softmax(dim=-1)


def greedy(model: SequentialLayers, source: list[int], longest: int = LONGEST) -> list[int]:
    tokens = [END]
    while len(tokens) < longest:
        token = 1 + int(log_probabilities(model, source, tokens)[-1, 1:].argmax())
        if token == END:
            break
        tokens.append(token)
    return tokens[1:]


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_changes_nothing(name: str, alone: ParallelMesh) -> None:
    """Beginnings of several lengths go on, some twice and some no more, and so do some of the sources."""
    model, rows = make(name), padded(sources())
    both = EncoderDecoder(model)
    cache = KeyValueCache(10, both.read(rows))
    inputs = torch.randint(3, WORDS - 2, (len(rows), 10), generator=torch.Generator().manual_seed(8))
    inputs[:, 0] = END
    decode(both.decoder, inputs[:, :3], cache)
    cache.select(torch.tensor([0, 0, 2, 2, 3, 3, 5, 5, 6, 6]))
    cache.select_sources(torch.tensor([0, 2, 3, 5, 6]))
    rows, inputs = (part[[0, 0, 2, 2, 3, 3, 5, 5, 6, 6]] for part in (rows, inputs))
    inputs[1::2, 3:] += 1  # the sequences of a source part here
    found = [decode(both.decoder, part, cache, part.shape[1]) for part in (inputs[:, 3:4], inputs[:, 4:6])]
    cache.select(torch.tensor([3, 2, 7, 6]))
    cache.select_sources(torch.tensor([1, 3]))
    rows, inputs = (part[[3, 2, 7, 6]] for part in (rows, inputs))
    last = decode(both.decoder, inputs[:, 6:], cache, 4)
    with torch.no_grad():
        expected = model(rows, inputs)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(torch.cat([part[[3, 2, 7, 6]] for part in found], dim=1), expected[:, 3:6])
    torch.testing.assert_close(last, expected[:, 6:])


@pytest.mark.parametrize("name", MODELS)
def test_a_beam_of_one_is_greedy(name: str, alone: ParallelMesh) -> None:
    model = make(name)
    found = best(search(model, sources(), beam=1))
    assert found == [greedy(model, source) for source in sources()]
    if name != "post_sinusoidal_joint":
        assert len({len(tokens) for tokens in found}) > 1, "some end before others"


def every_hypothesis(
    model: SequentialLayers, source: list[int], longest: int, penalty: float
) -> list[Hypothesis]:
    """It returns all sentences of a small vocabulary with an end, the best one first."""
    words = [token for token in range(FEW) if token not in (PADDING, END)]
    found = []
    for tokens in (list(w) for n in range(longest) for w in product(words, repeat=n)):
        table = log_probabilities(model, source, [END, *tokens])
        total = sum(float(table[i, token]) for i, token in enumerate([*tokens, END]))
        found.append(Hypothesis(tokens, total, total / (len(tokens) + 1) ** penalty))
    return sorted(found, key=lambda h: -h.score)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_is_exhaustive(penalty: float, alone: ParallelMesh) -> None:
    model = make(source_vocabulary_size=FEW, target_vocabulary_size=FEW)
    rows = sources(3, FEW)
    found = search(model, rows, 4, beam=FEW**4, length_penalty=penalty)
    for source, hypotheses in zip(rows, found, strict=True):
        expected = every_hypothesis(model, source, 4, penalty)
        assert len(hypotheses) == len(expected) == 1 + 4 + 16 + 64
        assert [h.tokens for h in hypotheses] == [h.tokens for h in expected]
        torch.testing.assert_close(
            [h.log_probability for h in hypotheses],
            [h.log_probability for h in expected],
            rtol=1e-5,
            atol=1e-5,
        )
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_a_beam_finds_no_worse_than_greedy(alone: ParallelMesh) -> None:
    model, rows = make(), sources(20)
    wide = search(model, rows, beam=8, length_penalty=0.0)
    narrow = search(model, rows, beam=1, length_penalty=0.0)
    gains = [w[0].log_probability - n[0].log_probability for w, n in zip(wide, narrow, strict=True)]
    assert sum(gains) > 1
    assert all(len(hypotheses) == 8 for hypotheses in wide)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_translations_do_not_depend_on_what_stands_beside_them(
    name: str, beam: int, alone: ParallelMesh
) -> None:
    """Neither on the batch, nor on its order, nor on padding."""
    model, rows = make(name), sources(9)
    together = search(model, rows, beam=beam)
    for backwards, hypotheses in zip(search(model, rows[::-1], beam=beam)[::-1], together, strict=True):
        assert [h.tokens for h in backwards] == [h.tokens for h in hypotheses]
    for source, hypotheses in zip(rows, together, strict=True):
        (by_itself,) = search(model, [source], beam=beam)
        assert [h.tokens for h in by_itself] == [h.tokens for h in hypotheses]
        (padded_more,) = search(model, [[*source, *[PADDING] * 7]], beam=beam)
        assert [h.tokens for h in padded_more] == [h.tokens for h in hypotheses]
        torch.testing.assert_close(
            [h.score for h in by_itself], [h.score for h in hypotheses], rtol=1e-5, atol=1e-5
        )


def test_the_longest_ends_all_the_same(alone: ParallelMesh) -> None:
    model = make(factor=1.0)
    found = search(model, sources(), longest=2, beam=3)
    assert all(len(h.tokens) < 2 for hypotheses in found for h in hypotheses)
    for source, hypotheses in zip(sources(), found, strict=True):
        for h in hypotheses:
            table = log_probabilities(model, source, [END, *h.tokens])
            expected = sum(float(table[i, token]) for i, token in enumerate([*h.tokens, END]))
            assert h.log_probability == pytest.approx(expected, rel=1e-5)


def test_a_model_that_has_diverged_is_told(alone: ParallelMesh) -> None:
    model = make(factor=float("nan"))
    with pytest.raises(CheckpointError, match="no numbers"):
        search(model, sources(), beam=2)


def search_over_ranks(name: str, tensor: int) -> list[list[Hypothesis]]:
    """Tensor-parallel ranks search together."""
    config = translation_config(Layout(tensor=tensor), {**SIZES, **MODELS[name]})
    mesh = make_mesh(config.parallel)
    model = build_layers(config.model, config.data, mesh, seed=2).eval()
    both, ends = EncoderDecoder(model), Ends(END, END, PADDING, LONGEST)
    return BeamSearch(both.decoder, both.read(padded(sources())), ends, Search(beam=4), mesh.tensor).run()


@pytest.mark.parametrize("name", ["pre", "deepnorm_learned"])
def test_tensor_parallel_ranks_translate_alike(name: str) -> None:
    (alone,) = run_distributed(partial(search_over_ranks, name, 1), 1)
    first, second = run_distributed(partial(search_over_ranks, name, 2), 2)
    assert first == second
    assert [[h.tokens for h in row] for row in first] == [[h.tokens for h in row] for row in alone]
