"""Beam search finds likely sequences of tokens, token by token, for many sources at once.

A  sources that are not done, K  hypotheses of each (`beam`; fewer at first), N = A x K  sequences
V  vocabulary, C  candidates of a source
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.mesh import Axis
from parallel.vocab import vocabulary_parallel_logits
from pretrain.errors import CheckpointError
from pretrain.models.cache import EncoderStates, KeyValueCache, decode
from pretrain.tasks.translator import Ends


@dataclass(frozen=True)
class Search:
    """It says how hypotheses are found and compared."""

    beam: int = 5
    """Hypotheses that are kept of a source; 1: the likeliest token is taken each time (greedy)."""
    length_penalty: float = 1.0
    """The score of a hypothesis is its log-probability over its number of tokens, end included, to this power; 0: the
    log-probability itself, which prefers short ones (Wu et al. 2016, arXiv 1609.08144, section 7, has another form)."""


class Hypothesis(NamedTuple):
    """It is a sequence that has ended."""

    tokens: list[int]
    """Without those at its begin and end."""
    log_probability: float
    """Of all tokens and the end, in nats."""
    score: float


class BeamSearch:
    """It goes on with the `beam` likeliest beginnings of a source, until as many hypotheses have ended among the first
    `beam` candidates of a step. With a beam as wide as there are sequences it finds the best one of all.

    What becomes of a source does not depend on the other ones.
    """

    def __init__(
        self, layers: nn.ModuleList, states: EncoderStates, ends: Ends, search: Search, tensor: Axis
    ) -> None:
        """`layers` are those of a decoder that asks the states of the sources; tensor ranks must search together."""
        self._layers, self._tensor = layers, tensor
        self._cache = KeyValueCache(ends.longest, states)
        self._ends, self._search = ends, search
        sources, device = len(states.states_ARD), states.states_ARD.device
        self._found: list[list[Hypothesis]] = [[] for _ in range(sources)]
        self._active = list(range(sources))
        self._scores_AK = torch.zeros(sources, 1, dtype=torch.float64, device=device)
        self._tokens_AKT = torch.full((sources, 1, 1), ends.begin, device=device)

    def run(self) -> list[list[Hypothesis]]:
        """It returns the hypotheses of each source, the best one first, `beam` of them unless there are fewer.

        Raises:
            CheckpointError: the model has diverged.
        """
        for length in range(1, self._ends.longest + 1):
            self._extend(last=length == self._ends.longest)
            if not self._active:
                break
        return [sorted(found, key=lambda h: -h.score)[: self._search.beam] for found in self._found]

    def _extend(self, *, last: bool) -> None:
        """It extends all beginnings by a token; `last`: by the end."""
        scores_AC, parents_AC, tokens_AC = self._candidates(last=last)
        ended_AC = tokens_AC == self._ends.end
        self._note_ended(scores_AC, parents_AC, ended_AC)
        going_on = [
            i for i, source in enumerate(self._active) if len(self._found[source]) < self._search.beam
        ]
        if last or not going_on:
            self._active = []
            return
        # A beginning has one end, so of C candidates C - K at least have not ended.
        keep = min(self._search.beam, ended_AC.shape[1] - self._scores_AK.shape[1])
        rows_A = torch.tensor(going_on, device=tokens_AC.device)
        chosen_AK = ended_AC[rows_A].byte().argsort(dim=1, stable=True)[:, :keep]
        self._go_on(
            rows_A, *(part[rows_A].gather(1, chosen_AK) for part in (scores_AC, parents_AC, tokens_AC))
        )

    def _candidates(self, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """It returns scores, parents among K, and tokens of the likeliest continuations, the likeliest first."""
        beginnings = self._scores_AK.shape[1]
        logits_N1W = decode(self._layers, self._tokens_AKT[..., -1:].flatten(0, 1), self._cache)
        logits_NV = vocabulary_parallel_logits(logits_N1W, self._tensor)[:, 0].float()
        if not logits_NV.amax(dim=-1).isfinite().all():  # NaN is the largest of all; padding has -inf
            raise CheckpointError(
                "the model computes no numbers (NaN or infinity); choose another checkpoint"
            )
        scores_NV = logits_NV.log_softmax(dim=-1)
        scores_NV[:, self._ends.never] = float("-inf")
        if last:
            scores_NC = scores_NV[:, self._ends.end, None].double()
            tokens_NC = torch.full_like(scores_NC, self._ends.end, dtype=torch.int64)
        else:
            top = scores_NV.topk(min(2 * self._search.beam, scores_NV.shape[1]))
            scores_NC, tokens_NC = top.values.double(), top.indices
        each = scores_NC.shape[1]
        scores_AC = (self._scores_AK.flatten()[:, None] + scores_NC).view(-1, beginnings * each)
        best = scores_AC.topk(min(2 * self._search.beam, beginnings * each))
        return best.values, best.indices // each, tokens_NC.view_as(scores_AC).gather(1, best.indices)

    def _note_ended(self, scores_AC: Tensor, parents_AC: Tensor, ended_AC: Tensor) -> None:
        """It notes hypotheses that have ended among the first `beam` candidates."""
        ended_AC = ended_AC[:, : self._search.beam] & scores_AC[:, : self._search.beam].isfinite()
        for row, column in ended_AC.nonzero().tolist():
            tokens = self._tokens_AKT[row, parents_AC[row, column], 1:].tolist()
            log_probability = float(scores_AC[row, column])
            score = log_probability / (len(tokens) + 1) ** self._search.length_penalty
            self._found[self._active[row]].append(Hypothesis(tokens, log_probability, score))

    def _go_on(self, rows_A: Tensor, scores_AK: Tensor, parents_AK: Tensor, tokens_AK: Tensor) -> None:
        beginnings = self._scores_AK.shape[1]
        self._cache.select((rows_A[:, None] * beginnings + parents_AK).flatten())
        if len(rows_A) < len(self._active):
            self._cache.select_sources(rows_A)
        before_AKT = self._tokens_AKT[rows_A[:, None], parents_AK]
        self._tokens_AKT = torch.cat([before_AKT, tokens_AK[..., None]], dim=-1)
        self._scores_AK = scores_AK
        self._active = [self._active[row] for row in rows_A.tolist()]
