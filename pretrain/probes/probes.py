"""This module makes all probes of a run, and the one vector that their slots lie in."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data_pipeline.batches import Batch
from pretrain.probes.activations import ActivationProbe
from pretrain.probes.attention import AttentionEntropyProbe
from pretrain.probes.embedding import EmbeddingProbe
from pretrain.probes.gradients import GradientNormProbe, GradientVarianceProbe
from pretrain.probes.mean_row import MeanRowProbe
from pretrain.probes.origin import GradientOriginProbe
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep
from pretrain.probes.replicas import ReplicaProbe, replicas_apply
from pretrain.probes.spectral import SpectralProbe
from pretrain.probes.table import LocalTable
from pretrain.probes.update import UpdateProbe


class Probes:
    """It has the probes of a run in a fixed order; the engine calls its methods in the order that they stand in."""

    def __init__(self, model: ProbedModel) -> None:
        self._config = model.config
        self._all = list(make_probes(model))
        self._active: list[Probe] = []
        self._asked = False
        self._seen: dict[Probe, Tensor] = {}
        """Slots of the probes that have looked at the first of two passes."""
        self._sizes: list[int] = []
        self._no_slots = model.zeros(0)

    def begin(
        self, number: int, batches: Sequence[Batch], *, full: bool = False, twice: bool = False
    ) -> None:
        """It is called before the first micro-batch; `full`, equal on all ranks, asks for a full look at any step.

        `twice` says that there will be two passes, and `between_passes` is called.
        """
        self._asked, full = full, full or self._full(number)
        histograms = full and number % self._config.histogram_every_steps == 0
        step = ProbeStep(number, full, self._asked, histograms, batches)
        self._step, self._seen = step, {}
        self._active = [probe for probe in self._all if probe.due(step)]
        for probe in self._active:
            if not (twice and probe.of_gradients):
                probe.begin(step)

    def between_passes(self) -> None:
        """It is called after the last backward pass of the first of two passes, before the weights move."""
        for probe in self._active:
            if probe.of_gradients:
                probe.begin(self._step)
            else:
                self._seen[probe] = probe.local()

    def gradients_averaged(self) -> None:
        """It is called after the last backward, with the gradients as DeepSpeed has averaged them."""
        for probe in self._active:
            probe.gradients_averaged()

    def local(self) -> Tensor:
        """It returns this rank's slots of all probes that look at this step, on its device."""
        slots = [self._seen[probe] if probe in self._seen else probe.local() for probe in self._active]
        self._sizes = [len(part) for part in slots]
        return torch.cat(slots) if slots else self._no_slots

    def finish(self, slots: Tensor) -> Measures:
        """It returns the measures of the step from the slots summed over all ranks."""
        scalars: dict[str, float] = {}
        histograms: dict[str, Sequence[float]] = {}
        for probe, part in zip(self._active, slots.split(self._sizes), strict=True):
            measures = probe.finish(part)
            scalars.update(measures.scalars)
            histograms.update(measures.histograms)
        return Measures(scalars, histograms)

    def before_update(self) -> None:
        """It is called once the verdict is known. Full looks come many steps in a row, so that one more is likely."""
        full_next = self._asked or self._full(self._step.step + 1)
        for probe in self._all:
            probe.before_update(full_next=full_next)

    def after_update(self, learning_rate: float) -> None:
        """It is called once the weights have moved, at this learning rate, or stayed: then it is 0."""
        for probe in self._all:
            probe.after_update(learning_rate)

    def reset(self) -> None:
        """The weights have been replaced: what is known of earlier ones says nothing about updates to come."""
        for probe in self._all:
            probe.reset()

    def state_dict(self) -> dict[str, Any]:
        """It returns what the next step's measures rest on, in tensors and plain values that are equal on all ranks."""
        state: dict[str, Any] = {}
        for probe in self._all:
            state.update(probe.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """It is called after `reset`; a state that lacks something leaves the next step without it."""
        for probe in self._all:
            probe.load_state_dict(state)

    def _full(self, number: int) -> bool:
        """It says whether a step is a full one by its number."""
        return number % self._config.every_steps == 0


def make_probes(model: ProbedModel) -> Iterator[Probe]:
    """It yields the probes that the configuration asks for, as far as the model has what they look at."""
    config, outline = model.config, model.outline
    tables = [LocalTable(model, index) for index in outline.tables]
    yield from (EmbeddingProbe(table) for table in tables if wanted(table))
    if config.attention_entropy and any(layer.attentions for layer in outline.layers):
        yield AttentionEntropyProbe(model)
    if config.activation_rms:
        yield ActivationProbe(model)
    if config.layer_gradient_norms:
        yield GradientNormProbe(model)
    if config.gradient_variance:
        yield GradientVarianceProbe(model)
    if config.spectral_norms:
        yield SpectralProbe(model)
    if replicas_apply(model):
        yield ReplicaProbe(model)
    yield from (MeanRowProbe(table) for table in tables if config.tev and table.size.watched)
    if config.update_rms:
        yield UpdateProbe(model)
    yield GradientOriginProbe(model)


def wanted(table: LocalTable) -> bool:
    """It says whether the embedding variability of a table is asked for."""
    config = table.model.config
    return config.tev if table.size.watched else config.tev_head
