"""All probes of a run, and the one vector that their slots lie in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data_pipeline.batches import Batch
from pretrain.config.run import RunConfig
from pretrain.probes.activations import ActivationProbe
from pretrain.probes.attention import AttentionEntropyProbe
from pretrain.probes.embedding import EmbeddingProbe
from pretrain.probes.gradients import GradientNormProbe, GradientVarianceProbe
from pretrain.probes.mean_row import MeanRowProbe
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep
from pretrain.probes.replicas import ReplicaProbe, replicas_apply
from pretrain.probes.spectral import SpectralProbe
from pretrain.probes.update import UpdateProbe


class Probes:
    """Probes of a run in a fixed order; methods are called by the engine, in the order that they stand in."""

    def __init__(self, model: ProbedModel) -> None:
        self._config = model.config
        self._mesh = model.mesh
        self._update = UpdateProbe(model) if model.config.probes.update_rms else None
        self._shift = MeanRowProbe(model) if model.config.probes.tev else None
        extra = [probe for probe in (self._shift, self._update) if probe]
        self._all: list[Probe] = [*make_probes(model), *extra]
        self._active: list[Probe] = []
        self._asked = False
        self._sizes: list[int] = []

    def begin(self, step: int, batches: Sequence[Batch], *, dense: bool = False) -> None:
        """Before the first micro-batch; `dense`, the same on all ranks, asks for a dense look at any step."""
        self._asked, dense = dense, dense or self._dense(step)
        histograms = dense and step % self._config.probes.histogram_every_steps == 0
        self._step = step
        if self._update and not dense:
            self._update.forget()
        occasion = ProbeStep(step, dense, histograms, batches)
        self._active = [probe for probe in self._all if probe.due(occasion)]
        for probe in self._active:
            probe.begin(occasion)

    def gradients_averaged(self) -> None:
        """After the last backward, with the gradients as DeepSpeed has averaged them."""
        for probe in self._active:
            probe.gradients_averaged()

    def local(self) -> Tensor:
        """This rank's slots of all probes that look at this step, on the CPU: one transfer."""
        slots = [probe.local() for probe in self._active]
        self._sizes = [len(part) for part in slots]
        return torch.cat(slots).cpu() if slots else torch.zeros(0, dtype=torch.float64)

    def finish(self, slots: Tensor) -> Measures:
        """Measures of the step from the slots summed over all ranks."""
        scalars: dict[str, float] = {}
        histograms: dict[str, Sequence[float]] = {}
        for probe, part in zip(self._active, slots.split(self._sizes), strict=True):
            measures = probe.finish(part)
            scalars.update(measures.scalars)
            histograms.update(measures.histograms)
        return Measures(scalars, histograms)

    def before_update(self) -> None:
        """Once the verdict is known."""
        if self._update_due:
            assert self._update is not None
            self._update.keep()

    def after_update(self, learning_rate: float) -> None:
        """Once the weights have moved, at this learning rate, or stayed: then it is 0."""
        if self._update_due:
            assert self._update is not None
            self._update.compare()
        for probe in self._active:
            probe.after_update(learning_rate)

    def forget(self) -> None:
        """The weights have been replaced: what is known of earlier ones says nothing about updates to come."""
        for probe in self._all:
            probe.forget()

    def state_dict(self) -> dict[str, Any]:
        """What the next step's measures rest on; of tensors and plain values, equal on all ranks."""
        return {"shift": self._shift.state_dict()} if self._shift else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """To be called after `forget`; a state that lacks something leaves the next step without it."""
        if self._shift:
            self._shift.load_state_dict(state.get("shift", {}))

    def _dense(self, step: int) -> bool:
        """Whether a step is a dense one by its number."""
        return step % self._config.probes.every_steps == 0

    @property
    def _update_due(self) -> bool:
        """Whether the next step is a dense one, or likely to be: dense looks are asked for many steps in a row."""
        return self._update is not None and (self._asked or self._dense(self._step + 1))


def make_probes(model: ProbedModel) -> list[Probe]:
    """The probes that the configuration asks for, without those that the engine must know."""
    config, head = model.config.probes, len(model.names) - 1
    probes: list[tuple[bool, Probe]] = [
        (config.tev, EmbeddingProbe(model, layer=0, prefix="tev")),
        (tev_of_head(model.config), EmbeddingProbe(model, layer=head, prefix="tev_head")),
        (config.attention_entropy, AttentionEntropyProbe(model)),
        (config.activation_rms, ActivationProbe(model)),
        (config.layer_gradient_norms, GradientNormProbe(model)),
        (config.gradient_variance, GradientVarianceProbe(model)),
        (config.spectral_norms, SpectralProbe(model)),
        (replicas_apply(model), ReplicaProbe(model)),
    ]
    return [probe for wanted, probe in probes if wanted]


def tev_of_head(config: RunConfig) -> bool:
    """A tied head has no table of its own."""
    return config.probes.tev_head and not config.model.tied_embeddings
