"""Attention entropy says how spread out a head's attention is; its collapse precedes divergence (arXiv 2303.06296).

B  samples, H  query heads (local), G  key heads (local), T  queries, S  keys, K  head size
R  sampled rows, P  B where samples are padded, else 1, N  attentions of one kind: B and P count them all then
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parallel.stacks import at_once, from_host
from parallel.statistics import (
    RowEntropies,
    Visibility,
    entropy_lower_bound,
    entropy_of_rows,
    sampled_rows,
)
from pretrain.models.attention import AttentionCore
from pretrain.models.outline import AttentionSize, Outline
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, observe_first_call


@dataclass(frozen=True)
class Place:
    """A place is one attention of the model, and says where its slots begin."""

    layer: int
    size: AttentionSize
    start: int

    @property
    def slots(self) -> slice:
        """Each head has two slots."""
        return slice(self.start, self.start + 2 * self.size.heads)

    def slots_of(self, rank: int, ranks: int) -> Iterator[int]:
        """It yields the slots of the heads of a tensor-parallel rank: their entropies, then the rest."""
        share = self.size.heads // ranks
        for first in (self.start, self.start + self.size.heads):
            yield from range(first + share * rank, first + share * (rank + 1))


@dataclass(frozen=True)
class _Seen:
    """It is what was seen of an attention."""

    place: Place
    q_BHRK: Tensor
    k_BGSK: Tensor
    rows_R: Tensor
    visibility: Visibility

    @property
    def kind(self) -> Hashable:
        """Attentions of one kind are measured together."""
        masks = (id(self.visibility.keys_BS), id(self.visibility.queries_BT))
        shapes = (self.q_BHRK.shape, self.k_BGSK.shape, self.k_BGSK.dtype)
        return id(self.rows_R), self.visibility.causal, masks, shapes


class AttentionEntropyProbe(Probe):
    """It takes each head's mean entropy over samples and sampled rows of the global batch's first micro-batch.

    Rows that see fewer than two keys, as those of padding do, do not count. Data rank 0 has that micro-batch, whatever
    the number of data ranks. Each head lies on one tensor rank, so every head of every attention has two slots: its
    entropy, and the least by which a row exceeds the bound of theorem 3.1, which cannot be negative but for rounding in
    the fifteenth digit: else the probe is wrong. The least of no rows is infinite, and tells of an attention of which
    no row counts.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._places = list(places_of(model.outline))
        self._seen: list[_Seen] = []
        self._places_seen: list[Place] = []
        self._heads: list[Tensor] = []
        """Of places that have been seen: what `of_heads` says of them."""

    def due(self, step: ProbeStep) -> bool:
        return step.full

    def begin(self, step: ProbeStep) -> None:
        self._histograms = step.histograms
        self._seen, self._places_seen, self._heads = [], [], []
        self._rows: dict[tuple[int, int], Tensor] = {}
        if not self._model.mesh.data.first:
            return
        for place in self._places:
            if place.layer in self._model.local:
                core = self._model.local[place.layer].get_submodule(place.size.module)
                assert isinstance(core, AttentionCore), f"{place.size.module} is no attention core"
                observe_first_call(core, partial(self._look, place, core.causal))

    def _look(
        self,
        place: Place,
        causal: bool,
        q_BHTK: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        dropout: float,
        keys_BS: Tensor | None = None,
        queries_BT: Tensor | None = None,
    ) -> None:
        rows_R = self._sampled(q_BHTK.shape[2], int(causal))
        visibility = Visibility(causal, keys_BS, queries_BT)
        self._seen.append(_Seen(place, q_BHTK[:, :, rows_R], k_BGSK.detach(), rows_R, visibility))
        if sum(seen.k_BGSK.numel() for seen in self._seen) > at_once(self._model.mesh.device):
            self._measure()

    def _sampled(self, length: int, first: int) -> Tensor:
        """It returns the rows that count of so many, on the device."""
        if (length, first) not in self._rows:
            rows_R = sampled_rows(length, self._model.config.attention_entropy_rows, first=first)
            self._rows[length, first] = from_host(rows_R.tolist(), self._model.mesh.device, torch.int64)
        return self._rows[length, first]

    def _measure(self) -> None:
        """It measures what has been seen, attentions of one kind together: launches go by the kinds."""
        kinds: dict[Hashable, list[_Seen]] = {}
        for seen in self._seen:
            kinds.setdefault(seen.kind, []).append(seen)
        for alike in kinds.values():
            self._places_seen += (seen.place for seen in alike)
            self._heads.append(of_heads(entropies(alike), len(alike)))
        self._seen = []

    def local(self) -> Tensor:
        self._measure()
        slots = self._model.zeros(sum(2 * place.size.heads for place in self._places))
        if self._heads:
            tensor = self._model.mesh.tensor
            own = [slot for place in self._places_seen for slot in place.slots_of(tensor.rank, tensor.size)]
            values = torch.cat([heads_N2H.flatten() for heads_N2H in self._heads])
            slots.index_copy_(0, from_host(own, slots.device, torch.int64), values)
        return slots

    def finish(self, slots: Tensor) -> Measures:
        values = slots.numpy()  # a sum over all ranks lies in host memory
        found: dict[str, np.ndarray[Any, Any]] = {}
        slack = []
        for place in self._places:
            entropy_H, slack_H = values[place.slots].reshape(2, -1)
            if not np.isposinf(slack_H).any():
                found[name_of(self._model.outline, place)] = entropy_H
                slack.append(slack_H.min())
        if not found:
            return Measures()
        means = {name: float(entropy_H.mean()) for name, entropy_H in found.items()}
        least = {name: float(entropy_H.min()) for name, entropy_H in found.items()}
        scalars = {
            "attention_entropy_mean": float(np.mean([*means.values()])),
            "attention_entropy_min": float(np.min([*least.values()])),
            "attention_entropy_slack_min": float(np.min(slack)),
            **{f"attention_entropy_mean/{name}": value for name, value in means.items()},
            **{f"attention_entropy_min/{name}": value for name, value in least.items()},
        }
        heads = {"attention/entropy_of_heads": np.concatenate([*found.values()]).tolist()}
        return Measures(scalars, heads if self._histograms else {})


def entropies(alike: Sequence[_Seen]) -> RowEntropies:
    """It returns the entropies of rows of N attentions of one kind, one after the other in the first dimension."""
    first, count = alike[0], len(alike)
    q = torch.stack([seen.q_BHRK for seen in alike]).flatten(0, 1)
    k = torch.stack([seen.k_BGSK for seen in alike]).flatten(0, 1)
    masks = (first.visibility.keys_BS, first.visibility.queries_BT)
    keys, queries = (mask if mask is None else mask.repeat(count, 1) for mask in masks)
    return entropy_of_rows(q, k, first.rows_R, Visibility(first.visibility.causal, keys, queries))


def of_heads(rows: RowEntropies, count: int) -> Tensor:
    """It returns the mean entropy of each head of `count` attentions, and the least by which it exceeds its bound;
    (N, 2, H)."""
    counts_P1R = (rows.visible_PR > 1)[:, None]
    bound = entropy_lower_bound(rows.spread_BHR, rows.visible_PR[:, None].to(rows.spread_BHR))
    entropy = rows.entropy_BHR.where(counts_P1R, 0.0)
    slack = (rows.entropy_BHR - bound).where(counts_P1R, torch.inf)
    no_row = slack.new_full((*slack.shape[:2], 1), torch.inf)
    by_attention = (count, len(entropy) // count)
    least_NH = torch.cat((slack, no_row), dim=2).unflatten(0, by_attention).amin(dim=(1, 3))
    number_N = counts_P1R.expand(len(entropy), -1, -1).unflatten(0, by_attention).sum(dim=(1, 2, 3))
    mean_NH = entropy.unflatten(0, by_attention).sum(dim=(1, 3)) / number_N.clamp(min=1)[:, None]
    return torch.stack((mean_NH, least_NH), dim=1)


def places_of(outline: Outline) -> Iterator[Place]:
    """It yields all attentions of the model, in the order of their slots."""
    start = 0
    for index, layer in enumerate(outline.layers):
        for size in layer.attentions:
            yield Place(index, size, start)
            start += 2 * size.heads


def name_of(outline: Outline, place: Place) -> str:
    """In measures an attention has its block's name, and what sets it apart from others there."""
    block = outline.names[place.layer]
    return f"{block}/{place.size.name}" if place.size.name else block
