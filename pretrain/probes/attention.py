"""Attention entropy: how spread out each head's attention is; its collapse precedes divergence (arXiv 2303.06296).

L  blocks, H  query heads of the whole model, R  sampled rows
"""

from functools import partial

import torch
from torch import Tensor

from parallel.statistics import attention_entropy, entropy_lower_bound, sampled_rows
from pretrain.models.attention import CausalAttention
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, by_block, observe_first_call


class AttentionEntropyProbe(Probe):
    """Mean entropy of each head over samples and sampled rows of the global batch's first micro-batch.

    Data rank 0 has that, whatever the number of data ranks. Each head lies on one tensor rank, so every head of every
    block has two slots: its entropy, and the least by which a row exceeds the bound of theorem 3.1, which cannot be
    negative but for rounding in the fifteenth digit: else the probe is wrong.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._heads: dict[int, Tensor] = {}

    def due(self, occasion: ProbeStep) -> bool:
        return occasion.dense

    def begin(self, occasion: ProbeStep) -> None:
        self._histograms = occasion.histograms
        self._heads.clear()
        if not self._model.mesh.data.first:
            return
        for number, block in self._model.blocks:
            for module in block.modules():
                if isinstance(module, CausalAttention):
                    observe_first_call(module, partial(self._look, number))

    def _look(self, number: int, q_BHSK: Tensor, k_BGSK: Tensor, *others: object) -> None:
        rows_R = sampled_rows(q_BHSK.shape[2], self._model.config.probes.attention_entropy_rows)
        entropy_BHR, spread_BHR = attention_entropy(q_BHSK, k_BGSK, rows_R)
        bound_BHR = entropy_lower_bound(spread_BHR, (rows_R + 1).to(spread_BHR))
        slack_H = (entropy_BHR - bound_BHR).amin(dim=(0, 2))
        self._heads[number] = torch.stack((entropy_BHR.mean(dim=(0, 2)), slack_H))

    def local(self) -> Tensor:
        config, tensor = self._model.config.model, self._model.mesh.tensor
        slots_L2H = self._model.zeros(config.num_layers, 2, config.attention.num_heads)
        share = config.attention.num_heads // tensor.size
        for number, heads_2H in self._heads.items():
            slots_L2H[number, :, share * tensor.rank : share * (tensor.rank + 1)] = heads_2H
        return slots_L2H.view(-1)

    def finish(self, slots: Tensor) -> Measures:
        entropy_LH, slack_LH = slots.view(self._model.config.model.num_layers, 2, -1).unbind(1)
        mean_L, least_L = entropy_LH.mean(1), entropy_LH.amin(1)
        scalars = {
            "attention_entropy_mean": mean_L.mean().item(),
            "attention_entropy_min": least_L.amin().item(),
            "attention_entropy_slack_min": slack_LH.amin().item(),
            **by_block("attention_entropy_mean", mean_L.tolist()),
            **by_block("attention_entropy_min", least_L.tolist()),
        }
        heads = {"attention/entropy_of_heads": entropy_LH.flatten().tolist()}
        return Measures(scalars, heads if self._histograms else {})
