"""A CTC model says a unit or the blank in every frame: how such an alignment and units belong together.

An alignment becomes units by leaving out repeats, then blanks (Graves et al. 2006,
https://doi.org/10.1145/1143844.1143891).

T  output frames, V  vocabulary, U  units, S = 2 U + 1  states of an alignment: blank, unit, blank, ..., unit, blank
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.speech.batch import BLANK

LogProbs = NDArray[np.float64]
"""In nats, of every id in every frame (T, V)."""


class Span(NamedTuple):
    """It is a unit in the frames of an alignment."""

    unit: int
    first: int
    """Its first frame."""
    end: int
    """The frame behind its last one."""


def collapsed(alignment: Sequence[int]) -> list[Span]:
    """It returns the units of an alignment, given as ids by frame."""
    spans: list[Span] = []
    end = 0
    for unit, run in groupby(alignment):
        first, end = end, end + len(list(run))
        if unit != BLANK:
            spans.append(Span(unit, first, end))
    return spans


def aligned(log_probs_TV: LogProbs, units: Sequence[int]) -> list[Span]:
    """It returns units in the frames of their likeliest alignment (Viterbi); there must be one.

    Of alignments that are equally likely it takes the one that goes on latest.
    """
    states_S = np.full(2 * len(units) + 1, BLANK)
    states_S[1::2] = units
    emitted_TS = log_probs_TV[:, states_S]
    skips_S = np.full(len(states_S), -np.inf)  # a blank may be left out between units that differ
    skips_S[3::2][states_S[3::2] != states_S[1:-2:2]] = 0
    best_S = np.full(len(states_S), -np.inf)
    best_S[:2] = emitted_TS[0, :2]
    came_TS = np.zeros(emitted_TS.shape, np.int64)
    from_3S = np.full((3, len(states_S)), -np.inf)
    for frame in range(1, len(emitted_TS)):
        from_3S[0], from_3S[1, 1:], from_3S[2, 2:] = best_S, best_S[:-1], best_S[:-2] + skips_S[2:]
        came_TS[frame] = from_3S.argmax(axis=0)
        best_S = from_3S.max(axis=0) + emitted_TS[frame]
    path = [int(best_S[-2:].argmax()) + max(len(states_S) - 2, 0)]
    for came_S in came_TS[:0:-1]:
        path.append(path[-1] - int(came_S[path[-1]]))
    spans, end = [], 0
    for state, run in groupby(reversed(path)):
        first, end = end, end + len(list(run))
        if state % 2:
            spans.append(Span(int(states_S[state]), first, end))
    return spans
