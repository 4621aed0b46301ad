"""What a CTC model says is decoded: greedily, or by a search for the likeliest units over all their alignments.

Utterances are decoded one at a time, without the padding of their batch.

T  output frames, V  vocabulary, K  prefixes that are kept (`beam`; fewer at first)
C = K + K x V  candidates: the prefixes as they are, then each with each id behind it
M  prefixes of which the one without the last unit is kept, too
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.speech.batch import BLANK
from pretrain.tasks.speech.alignment import LogProbs, collapsed
from pretrain.tasks.speech.fusion import Fusion, Words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Hypothesis(NamedTuple):
    """It is what an utterance may say."""

    units: list[int]
    log_probability: float
    """In nats, of those of its alignments that were looked at: of one where it was found greedily."""
    score: float
    """The same with what a language model adds."""


def decode(log_probs_TV: LogProbs, beam: int, fusion: Fusion | None = None) -> Hypothesis:
    """It returns what is found best; greedily with a beam of 1 and no language model."""
    if beam == 1 and fusion is None:
        return greedy(log_probs_TV)
    return beam_search(log_probs_TV, beam, fusion)[0]


def greedy(log_probs_TV: LogProbs) -> Hypothesis:
    """It returns the units of the likeliest alignment; of ids that are equally likely it takes the first."""
    log_probability = float(log_probs_TV.max(axis=1).sum())
    units = [span.unit for span in collapsed(log_probs_TV.argmax(axis=1).tolist())]
    return Hypothesis(units, log_probability, log_probability)


def beam_search(log_probs_TV: LogProbs, beam: int, fusion: Fusion | None = None) -> list[Hypothesis]:
    """It returns the `beam` prefixes that are left in the end, or fewer, the best one first, by prefix beam search
    (Hannun et al. 2014, arXiv 1408.2873).

    With a beam as wide as there are prefixes, these are all units that fit into the frames, with their probabilities.
    What is equally good comes in an order that the log-probabilities alone decide.
    """
    kept = _Beam(beam, _Prefixes(fusion))
    for row_V in log_probs_TV:
        kept.advance(row_V)
    return kept.hypotheses()


class _Prefix(NamedTuple):
    """It is the beginning of what may be said."""

    parent: int
    """The number of the one without the last unit."""
    last: int
    scored: Words
    """Without its last word, to which more may come."""
    open_units: tuple[int, ...]
    """Of its last word."""
    closed: Words
    """With its last word."""


class _Prefixes:
    """It knows all prefixes that were ever kept, by number: one that comes back has the number that it had."""

    def __init__(self, fusion: Fusion | None) -> None:
        self._fusion = fusion
        nothing = fusion.begin() if fusion else Words(None, 0.0)
        self._prefixes = [_Prefix(-1, BLANK, nothing, (), nothing)]
        self._numbers: dict[tuple[int, int], int] = {}

    def child(self, parent: int, unit: int) -> int:
        """It returns the prefix with one more unit."""
        number = self._numbers.setdefault((parent, unit), len(self._prefixes))
        if number == len(self._prefixes):
            _, _, scored, open_units, closed = self._prefixes[parent]
            if self._fusion:
                if self._fusion.closes_V[unit]:
                    scored, open_units = closed, ()
                open_units += (unit,)
                closed = self._fusion.close(scored, open_units)
            self._prefixes.append(_Prefix(parent, unit, scored, open_units, closed))
        return number

    def units(self, number: int) -> list[int]:
        """It returns the units of a prefix."""
        units = []
        while number:
            number, unit = self._prefixes[number][:2]
            units.append(unit)
        return units[::-1]

    def added(self, numbers: Sequence[int]) -> tuple[Floats, Floats]:
        """It returns what the language model has added to prefixes (K,), and to each with each unit behind it (K, V),
        as far as words are whole."""
        if not self._fusion:
            return np.zeros(len(numbers)), np.zeros((len(numbers), 1))
        prefixes = [self._prefixes[number] for number in numbers]
        scored_K = np.array([prefix.scored.score for prefix in prefixes])
        closed_K = np.array([prefix.closed.score for prefix in prefixes])
        return scored_K, np.where(self._fusion.closes_V, closed_K[:, None], scored_K[:, None])

    def added_to_whole(self, number: int) -> float:
        """It returns what the language model adds to a prefix that is all that was said."""
        return self._fusion.end(self._prefixes[number].closed) if self._fusion else 0.0


class _Beam:
    """It is the best prefixes after some frames, the best one first."""

    def __init__(self, width: int, prefixes: _Prefixes) -> None:
        self._width, self._prefixes = width, prefixes
        self._numbers_K, self._parents_K, self._last_K = np.array([0]), np.array([-1]), np.array([BLANK])
        self._blank_K, self._unit_K = np.zeros(1), np.full(1, -np.inf)
        """Log-probabilities of a prefix, summed over its alignments that end with a blank, and with its last unit."""

    def advance(self, row_V: Floats) -> None:
        """It goes on by a frame, whose log-probabilities are given."""
        rows_K = np.arange(len(self._numbers_K))
        whole_K = np.logaddexp(self._blank_K, self._unit_K)
        blank_K, unit_K = whole_K + row_V[BLANK], self._unit_K + row_V[self._last_K]
        longer_KV = whole_K[:, None] + row_V
        # Behind itself a unit is a repeat, unless a blank stands between.
        longer_KV[rows_K, self._last_K] = self._blank_K + row_V[self._last_K]
        longer_KV[:, BLANK] = -np.inf
        # A prefix that is kept and comes up again, as a shorter one with a unit behind it, is one and the same.
        child_M, parent_M = np.nonzero(self._parents_K[:, None] == self._numbers_K)
        again_M = parent_M, self._last_K[child_M]
        unit_K[child_M] = np.logaddexp(unit_K[child_M], longer_KV[again_M])
        longer_KV[again_M] = -np.inf
        added_K, added_KV = self._prefixes.added(self._numbers_K.tolist())
        chosen_K = best(joined(np.logaddexp(blank_K, unit_K) + added_K, longer_KV + added_KV), self._width)
        self._blank_K = joined(blank_K, np.full(longer_KV.shape, -np.inf))[chosen_K]
        self._unit_K = joined(unit_K, longer_KV)[chosen_K]
        self._go_on(chosen_K, len(row_V))

    def _go_on(self, chosen_K: Ints, vocabulary: int) -> None:
        """It goes on with candidates, given by their places among all."""
        kept = len(self._numbers_K)
        longer_K = chosen_K >= kept
        origin_K, unit_K = np.divmod(chosen_K - kept, vocabulary)
        origin_K = np.where(longer_K, origin_K, chosen_K)
        origins_K = self._numbers_K[origin_K]
        self._last_K = np.where(longer_K, unit_K, self._last_K[origin_K])
        self._parents_K = np.where(longer_K, origins_K, self._parents_K[origin_K])
        each = zip(origins_K.tolist(), self._last_K.tolist(), longer_K.tolist(), strict=True)
        self._numbers_K = np.array(
            [self._prefixes.child(origin, last) if longer else origin for origin, last, longer in each]
        )

    def hypotheses(self) -> list[Hypothesis]:
        """It returns the prefixes as all that was said, the best one first."""
        sums_K = np.logaddexp(self._blank_K, self._unit_K)
        found = [
            Hypothesis(self._prefixes.units(number), sum_, sum_ + self._prefixes.added_to_whole(number))
            for number, sum_ in zip(self._numbers_K.tolist(), sums_K.tolist(), strict=True)
        ]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)


def joined(kept_K: NDArray[Any], longer: NDArray[Any]) -> NDArray[Any]:
    """It lists something of all candidates."""
    return np.concatenate([kept_K, longer.ravel()])


def best(scores_C: Floats, count: int) -> Ints:
    """It returns the places of the highest scores, the highest one first; of equal ones the first ones."""
    least = np.partition(scores_C, -count)[-count] if len(scores_C) > count else -np.inf
    places = np.flatnonzero((scores_C >= least) & (scores_C > -np.inf))
    return places[np.argsort(-scores_C[places], kind="stable")][:count]
