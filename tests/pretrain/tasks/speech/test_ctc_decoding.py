"""Decoding is compared with what all alignments of a few frames add up to, each of them looked at."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise, product
from math import log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_pipeline.speech.units import CharacterUnits
from pretrain.tasks.speech.alignment import Span, aligned, collapsed
from pretrain.tasks.speech.decoding import LogProbs, beam_search, decode, greedy
from pretrain.tasks.speech.fusion import Fusion

BLANK = 0
EVERYTHING = 10_000
"""A beam as wide as this leaves nothing out."""


def random_log_probs(frames: int, vocabulary: int, seed: int, scale: float = 2.0) -> LogProbs:
    logits = torch.randn(frames, vocabulary, generator=torch.Generator().manual_seed(seed)).double() * scale
    return logits.log_softmax(-1).numpy()


def units_of(alignment: Sequence[int]) -> tuple[int, ...]:
    """Repeats are left out, then blanks."""
    before = (BLANK, *alignment)
    return tuple(unit for unit, last in zip(alignment, before, strict=False) if unit not in (BLANK, last))


def all_alignments(log_probs_TV: LogProbs) -> dict[tuple[int, ...], dict[tuple[int, ...], float]]:
    """Log-probabilities of all alignments, by the units that they stand for."""
    frames, vocabulary = log_probs_TV.shape
    found: dict[tuple[int, ...], dict[tuple[int, ...], float]] = defaultdict(dict)
    for alignment in product(range(vocabulary), repeat=frames):
        found[units_of(alignment)][alignment] = float(log_probs_TV[np.arange(frames), alignment].sum())
    return found


def by_force(log_probs_TV: LogProbs) -> dict[tuple[int, ...], float]:
    return {
        units: float(np.logaddexp.reduce([*alignments.values()]))
        for units, alignments in all_alignments(log_probs_TV).items()
    }


@pytest.mark.parametrize(
    ("frames", "vocabulary", "seed"), [(1, 3, 0), (4, 3, 1), (5, 4, 2), (5, 4, 3), (7, 2, 4)]
)
def test_wide_beam_finds_all_there_is_with_its_whole_probability(
    frames: int, vocabulary: int, seed: int
) -> None:
    log_probs = random_log_probs(frames, vocabulary, seed)
    expected = by_force(log_probs)
    found = beam_search(log_probs, EVERYTHING)
    assert {tuple(one.units): one.log_probability for one in found} == pytest.approx(expected)
    assert [one.score for one in found] == pytest.approx(sorted(expected.values(), reverse=True))
    assert np.logaddexp.reduce([one.log_probability for one in found]) == pytest.approx(0, abs=1e-12)


def test_it_is_what_ctc_loss_says_of_these_units() -> None:
    log_probs = random_log_probs(6, 4, 5)
    for one in beam_search(log_probs, EVERYTHING)[:50]:
        loss = F.ctc_loss(
            torch.from_numpy(log_probs)[:, None],
            torch.tensor([one.units], dtype=torch.long),
            torch.tensor([6]),
            torch.tensor([len(one.units)]),
            reduction="sum",
        )
        assert one.log_probability == pytest.approx(-float(loss))


def test_a_narrow_beam_finds_no_more_than_there_is_and_a_wider_one_no_less() -> None:
    log_probs = random_log_probs(30, 8, 6)
    found = [beam_search(log_probs, beam)[0].log_probability for beam in (1, 2, 4, 16, 64, 256)]
    assert found == sorted(found)
    assert found[-1] > greedy(log_probs).log_probability
    for beam in (1, 3, 16):
        assert len(beam_search(log_probs, beam)) == beam


def test_prefix_that_was_dropped_is_found_again() -> None:
    """A narrow beam drops prefixes whose longer ones stay; what comes to both is still counted once."""
    for seed in range(40):
        log_probs = random_log_probs(6, 3, seed, scale=1.0)
        expected = by_force(log_probs)
        for beam in (2, 3, 4):
            found = beam_search(log_probs, beam)
            assert len({tuple(one.units) for one in found}) == len(found)
            for one in found:
                assert one.log_probability <= expected[tuple(one.units)] + 1e-9


def test_greedy_is_the_likeliest_alignment() -> None:
    log_probs = random_log_probs(5, 4, 7)
    best, value = max(
        ((a, p) for group in all_alignments(log_probs).values() for a, p in group.items()),
        key=lambda item: item[1],
    )
    found = greedy(log_probs)
    assert found.units == list(units_of(best))
    assert found.score == found.log_probability == pytest.approx(value)
    assert decode(log_probs, 1) == found


def test_likeliest_units_need_not_be_those_of_the_likeliest_alignment() -> None:
    """The example of Hannun et al.: blanks are likeliest in each frame, but more alignments say something."""
    log_probs = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert greedy(log_probs).units == []
    best = decode(log_probs, 2)
    assert best.units == [1]
    assert best.log_probability == pytest.approx(log(0.64))


def test_what_is_equally_good_comes_in_the_same_order() -> None:
    log_probs = np.full((4, 3), -log(3))
    found = beam_search(log_probs, 5)
    assert found == beam_search(log_probs.copy(), 5)
    assert greedy(log_probs).units == []
    assert decode(np.log([[0.2, 0.4, 0.4]]), 2).units == [1]


@pytest.mark.parametrize(
    ("alignment", "spans"),
    [
        ([0, 0], []),
        ([1, 1, 0, 1, 2, 2], [Span(1, 0, 2), Span(1, 3, 4), Span(2, 4, 6)]),
        ([0, 3, 0, 0], [Span(3, 1, 2)]),
        ([], []),
    ],
)
def test_alignment_collapses(alignment: list[int], spans: list[Span]) -> None:
    assert collapsed(alignment) == spans


@pytest.mark.parametrize("seed", range(8))
def test_units_are_aligned_where_they_are_likeliest(seed: int) -> None:
    log_probs = random_log_probs(5, 4, seed)
    for units, alignments in all_alignments(log_probs).items():
        expected = collapsed(max(alignments, key=alignments.__getitem__))
        assert aligned(log_probs, units) == expected


def test_units_of_a_padded_vocabulary_are_never_said() -> None:
    log_probs = random_log_probs(6, 3, 9)
    padded = np.pad(log_probs, [(0, 0), (0, 5)], constant_values=-np.inf)
    assert beam_search(padded, EVERYTHING) == beam_search(log_probs, EVERYTHING)


# With a language model

LETTERS = CharacterUnits(" ab")
"""Blank, space, a, b."""


class Bigrams:
    """It gives every word another probability behind every other, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def begin(self) -> str:
        return "<s>"

    def word(self, state: str, word: str) -> tuple[str, float]:
        self.asked.append((state, word))
        return word, bigram(state, word)

    def end(self, state: str) -> float:
        return bigram(state, "</s>")


def bigram(before: str, word: str) -> float:
    return -1.0 - sum(map(ord, f"{before} {word}")) % 7


def sentence_score(text: str) -> float:
    words = ["<s>", *text.split(), "</s>"]
    return sum(bigram(before, word) for before, word in pairwise(words))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pieces", [False, True])
def test_wide_beam_with_a_language_model_is_what_all_sentences_come_to(seed: int, pieces: bool) -> None:
    """Spaces between characters, or at the beginning of pieces; two of them, and those at the ends, are no word."""
    texts = ["", " a", "b", " "] if pieces else ["", " ", "a", "b"]

    def text(units: Sequence[int]) -> str:
        return "".join(texts[unit] for unit in units)

    weight, bonus = 0.7, 1.3
    log_probs = random_log_probs(5, 4, seed)
    model = Bigrams()
    found = beam_search(log_probs, EVERYTHING, Fusion(model, weight, bonus, 4, text))
    expected = {
        units: probability + weight * sentence_score(text(units)) + bonus * len(text(units).split())
        for units, probability in by_force(log_probs).items()
    }
    assert {tuple(one.units): one.score for one in found} == pytest.approx(expected)
    assert tuple(found[0].units) == max(expected, key=expected.__getitem__)
    assert {tuple(one.units): one.log_probability for one in found} == pytest.approx(by_force(log_probs))


def test_language_model_decides_between_words_that_sound_alike() -> None:
    log_probs = np.log(np.full((3, 4), 1e-6))
    log_probs[[0, 1, 2], [3, 1, 3]] = log(0.5)
    log_probs[[0, 2], [2, 2]] = log(0.49)
    assert LETTERS.decode(decode(log_probs, 8).units) == "b b"
    assert max(("a a", "a b", "b a", "b b"), key=sentence_score) == "a a"
    fusion = Fusion(Bigrams(), 1.0, 0.0, LETTERS.count, LETTERS.decode)
    assert LETTERS.decode(decode(log_probs, 8, fusion).units) == "a a"
