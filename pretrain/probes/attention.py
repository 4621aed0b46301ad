"""Attention entropy says how spread out a head's attention is; its collapse precedes divergence (arXiv 2303.06296).

B  samples, H  query heads (local), G  key heads (local), T  queries, S  keys, K  head size
R  sampled rows, P  B where samples are padded, else 1
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from parallel.statistics import (
    RowEntropies,
    Visibility,
    attention_entropy,
    entropy_lower_bound,
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
        self._heads: dict[Place, Tensor] = {}

    def due(self, step: ProbeStep) -> bool:
        return step.full

    def begin(self, step: ProbeStep) -> None:
        self._histograms = step.histograms
        self._heads.clear()
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
        rows_R = sampled_rows(q_BHTK.shape[2], self._model.config.attention_entropy_rows, first=int(causal))
        visibility = Visibility(causal, keys_BS, queries_BT)
        self._heads[place] = of_heads(attention_entropy(q_BHTK, k_BGSK, rows_R, visibility))

    def local(self) -> Tensor:
        slots, tensor = (
            self._model.zeros(sum(2 * place.size.heads for place in self._places)),
            self._model.mesh.tensor,
        )
        for place, heads_2H in self._heads.items():
            share = place.size.heads // tensor.size
            own = slice(share * tensor.rank, share * (tensor.rank + 1))
            slots[place.slots].view(2, -1)[:, own] = heads_2H
        return slots

    def finish(self, slots: Tensor) -> Measures:
        found: dict[str, Tensor] = {}
        slack = []
        for place in self._places:
            entropy_H, slack_H = slots[place.slots].view(2, -1).unbind()
            if not slack_H.isposinf().any():
                found[name_of(self._model.outline, place)] = entropy_H
                slack.append(slack_H.amin())
        if not found:
            return Measures()
        means = {name: entropy_H.mean() for name, entropy_H in found.items()}
        least = {name: entropy_H.amin() for name, entropy_H in found.items()}
        scalars = {
            "attention_entropy_mean": torch.stack([*means.values()]).mean().item(),
            "attention_entropy_min": torch.stack([*least.values()]).amin().item(),
            "attention_entropy_slack_min": torch.stack(slack).amin().item(),
            **{f"attention_entropy_mean/{name}": value.item() for name, value in means.items()},
            **{f"attention_entropy_min/{name}": value.item() for name, value in least.items()},
        }
        heads = {"attention/entropy_of_heads": torch.cat([*found.values()]).tolist()}
        return Measures(scalars, heads if self._histograms else {})


def of_heads(rows: RowEntropies) -> Tensor:
    """It returns the mean entropy of each head, and the least by which it exceeds its bound; (2, H)."""
    counts_P1R = (rows.visible_PR > 1)[:, None]
    bound_BHR = entropy_lower_bound(rows.spread_BHR, rows.visible_PR[:, None].to(rows.spread_BHR))
    entropy_BHR = rows.entropy_BHR.where(counts_P1R, 0.0)
    number = counts_P1R.expand(len(entropy_BHR), -1, -1).sum().clamp(min=1)
    slack_BHR = (rows.entropy_BHR - bound_BHR).where(counts_P1R, torch.inf)
    no_row = slack_BHR.new_full((*slack_BHR.shape[:2], 1), torch.inf)
    least_H = torch.cat((slack_BHR, no_row), dim=2).amin(dim=(0, 2))
    return torch.stack((entropy_BHR.sum(dim=(0, 2)) / number, least_H))


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
