"""All detectors of a run: hard facts of one step, and drifts of signals. Pure: equal reports make equal findings.

Hard alarms rest on nothing fitted: what is not finite, caps, replicas that differ, and an embedding table that moved
farther than its optimizer can move it. The values of such a step teach the soft channel nothing.

Drifts (`cusum`) are looked for in

    loss                     its logarithm, both ways: a sudden fall is duplicated or leaked data
    gradient_norm            its logarithm, upwards
    gradient_variance        its logarithm, upwards
    update_rms, .../embedding  the logarithm of the update over the learning rate that made it, upwards
    attention_entropy_min, _mean  the logarithm, both ways: collapse is low
    tev_mean, _std, _max     the logarithm, upwards: a level that was jumped to
    tev_growth               change of tev_mean over the sum of learning rates, in blocks of 8 steps: a creeping drift
    tev_shift                the logarithm of the mean row's change over the learning rate that made it, upwards: a
                             vector that all rows take up

TEV is neither noisy nor stationary: it grows for the whole run, fast at first, in waves of some tens of steps. On
real runs its level against a long past gives false alarms at every wave, and so does its growth from step to step,
whose neighbours are all but equal (correlation 0.9). Hence the level is held against a short past only, with a spread
of at least 20 times the learning rate (one update moves a weight by about one learning rate), which catches jumps.
Creeping drift is sought in the growth over 8 steps, which is half independent of the next one's, in natural units:
1 would be all weights moving straight away from their row's mean by one learning rate in every update. Healthy runs
have 0.4 after warmup, then 0.2 to 0.01, with waves of 0.05; hence a spread of at least 0.08, over 64 blocks. Twice a
tighter one was clean on the runs that it was chosen on and not on new ones. The price: where the learning rate is
high, a drift of 0.2 % of TEV a step can hide in the waves. Where all rows drift alike, the mean row tells at once:
TEV sees the square of such a drift, or nothing where it runs against what rows share already (in a tied table that
is most of a row: 0.074 of a TEV of 0.097 after 400 steps of configs/gpt/rehearsal.toml). The mean row of healthy runs
moves by 0.03 to 0.15 learning rates an update, within a factor of 1.5 in waves of twenty steps.

A signal that a step lacks is left alone. All are disarmed until the warmup of the learning rate is over and their
window is full of values from after it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.step import Alarm, StepReport
from pretrain.watchdog.cusum import HIGH, LOW, Channel, ChannelSettings

SHORT_WINDOW = 64
"""Values in the baseline of TEV's level, and at least of what probes measure every few steps: with fewer, the first
specialisation of attention heads looks like collapse."""
GROWTH_STEPS = 8
"""Updates in a block of `tev_growth`."""
_GROWTH_FLOOR, _GROWTH_WINDOW = 0.08, 64
_SHIFT_FLOOR = 0.3
_SHIFT_WINDOW = 128
_UPDATE_FLOOR = 0.1
"""Updates of AdamW, an embedding's above all, scatter by that much in waves of some hundred steps."""

_LEVELS = ("tev_mean", "tev_std", "tev_max")
_UPDATES = ("update_rms", "update_rms/embedding")
_MOVES = (*_UPDATES, "tev_shift")
"""Are compared with the learning rate that made them."""
_ENTROPIES = {"attention_entropy_min": 0.15, "attention_entropy_mean": 0.05}
"""Least spreads. While attention forms, its most certain head falls by a third of a nat in fifty steps and the mean by
a tenth; logits that explode take the former from 3 nats to 0.1 and the latter to half within few."""
_PLAIN = ("gradient_variance", *_LEVELS)
_WATCHED = (*_PLAIN, *_ENTROPIES, *_MOVES)
_SUDDEN_FALL = replace(LOW, allowance=2.0)
"""A loss falls in earnest too."""
_CERTAIN = 0.1
"""Nats added to an entropy: how certain exactly a head is that looks at one token is no news."""
_REACHES = 20.0
"""Learning rates that the level of TEV may be off in a healthy run, relative to TEV."""


@dataclass(frozen=True)
class Findings:
    """What the detectors say of a step."""

    alarms: tuple[Alarm, ...] = ()
    """Hard ones of this step, and soft ones for as long as their sums are above their thresholds."""
    suspects: tuple[Alarm, ...] = ()
    """Sums that have reached half their threshold and are no alarms."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Curves of the signals that this step has: `wd/z/...`, `wd/sum/...` (negative: downwards), `wd/threshold/...`."""
    calibrated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Signals whose thresholds were calibrated in this step: the new ones, by direction."""


class Detectors:
    """Called once a step on every rank with the same report."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config.watchdog
        self._warmup = config.schedule.warmup_steps
        self._channels = {name: Channel(settings) for name, settings in channel_settings(config).items()}
        self._growth = Growth()
        self._learning_rate = 0.0
        self._passed = {"tev_reach": 1, "replicas_differ": 1}
        """Last step at which each check of the weights passed."""

    def look(self, report: StepReport) -> Findings:
        """Hold a step's measures against all that came before, and learn from them."""
        facts = tuple(self._facts(report))
        values = {} if facts or report.step <= self._warmup else dict(self._values(report))
        calibrated = {}
        for name, value in values.items():
            channel = self._channels[name]
            before = channel.thresholds
            channel.look(report.step, value)
            if channel.thresholds != before:
                calibrated[name] = channel.thresholds
        self._learning_rate = report.learning_rate
        drifts = {name: channel for name, channel in self._channels.items() if channel.armed}
        alarms, suspects = _standing(drifts)
        scalars = {
            key: value
            for name, channel in drifts.items()
            if name in values
            for key, value in _curves(name, channel).items()
        }
        return Findings((*facts, *alarms), suspects, scalars, calibrated)

    def rebaseline(self) -> None:
        """Signals are about to change on purpose: drifts count anew after 64 values."""
        for channel in self._channels.values():
            channel.rebaseline()
        self._growth = Growth()

    def _facts(self, report: StepReport) -> Iterator[Alarm]:
        """The hard channel."""
        yield from _nonfinite(report)
        if report.finite:
            yield from self._over_caps(report)
        for name, kind, limit in (("tev_reach", "reach", 1.0), ("replicas_differ", "replicas", 0.0)):
            value = report.measures.get(name)
            if value is None or (kind == "reach" and not self._config.reach):
                continue
            if value > limit:
                yield Alarm(name, kind, self._passed[name], value, limit)
            else:
                self._passed[name] = report.step

    def _over_caps(self, report: StepReport) -> Iterator[Alarm]:
        caps = (
            ("loss", report.loss, self._config.maximum_loss),
            ("gradient_norm", report.gradient_norm, self._config.maximum_gradient_norm),
        )
        for name, value, cap in caps:
            if cap is not None and value > cap:
                yield Alarm(name, "cap", report.step, value, cap)

    def _values(self, report: StepReport) -> Iterator[tuple[str, float]]:
        """What the channels look at; signals that the step lacks, or whose logarithm does not exist, are left out."""
        measures = report.measures
        last = self._learning_rate or report.learning_rate
        raw = {"loss": report.loss, "gradient_norm": report.gradient_norm}
        raw |= {name: measures[name] for name in _PLAIN if name in measures}
        raw |= {name: measures[name] + _CERTAIN for name in _ENTROPIES if name in measures}
        raw |= {name: measures[name] / last for name in _MOVES if name in measures and last}
        for name, value in raw.items():
            if value > 0:
                yield name, _log(value)
        if "tev_mean" in measures:
            growth = self._growth.after(measures["tev_mean"], report.learning_rate)
            if growth is not None:
                yield "tev_growth", growth

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; goes into checkpoints."""
        return {
            "channels": {name: channel.state_dict() for name, channel in self._channels.items()},
            "growth": vars(self._growth).copy(),
            "learning_rate": self._learning_rate,
            "passed": dict(self._passed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A state of equal settings; else everything is as after a start."""
        for name, channel in self._channels.items():
            if name in state["channels"]:  # earlier versions watched less
                channel.load_state_dict(state["channels"][name])
        self._growth = Growth(**state["growth"])
        self._learning_rate = state["learning_rate"]
        self._passed = dict(state["passed"])


@dataclass
class Growth:
    """Change of TEV in blocks of steps, by what the learning rates could have made of it."""

    start: float | None = None
    """TEV at the block's start."""
    reach: float = 0.0
    """Sum of the block's learning rates."""
    steps: int = 0

    def after(self, tev: float, learning_rate: float) -> float | None:
        """The growth of the block that ends with `tev`, or none; `learning_rate` is that of the update to come."""
        growth = None
        if self.start is None or (self.steps == GROWTH_STEPS and self.reach == 0):
            self.start, self.steps, self.reach = tev, 0, 0.0
        elif self.steps == GROWTH_STEPS:
            growth = round((tev - self.start) / self.reach, 9)
            self.start, self.steps, self.reach = tev, 0, 0.0
        self.steps += 1
        self.reach += learning_rate
        return growth


def channel_settings(config: RunConfig) -> dict[str, ChannelSettings]:
    """How each signal is watched."""
    every_step = ChannelSettings(config.watchdog.window, config.watchdog.threshold)
    short = min(config.watchdog.window, SHORT_WINDOW)
    stride = config.probes.every_steps
    sometimes = replace(every_step, window=max(SHORT_WINDOW, config.watchdog.window // stride), stride=stride)
    level = replace(every_step, window=short, floor=max(2e-3, _REACHES * config.optimizer.learning_rate))
    growth = replace(
        every_step, window=_GROWTH_WINDOW, stride=GROWTH_STEPS, floor=_GROWTH_FLOOR, uncertainty=0.0
    )
    return {
        "loss": replace(every_step, directions=(HIGH, _SUDDEN_FALL)),
        "gradient_norm": every_step,
        "gradient_variance": sometimes,
        **dict.fromkeys(_UPDATES, replace(sometimes, floor=_UPDATE_FLOOR)),
        **{
            name: replace(sometimes, directions=(HIGH, LOW), floor=floor)
            for name, floor in _ENTROPIES.items()
        },
        **dict.fromkeys(_LEVELS, level),
        "tev_growth": growth,
        "tev_shift": replace(
            every_step, window=min(config.watchdog.window, _SHIFT_WINDOW), floor=_SHIFT_FLOOR
        ),
    }


def _nonfinite(report: StepReport) -> Iterator[Alarm]:
    """Numbers that are none, among what is watched."""
    numbers = {"loss": report.loss, "gradient_norm": report.gradient_norm}
    numbers |= {name: report.measures[name] for name in _WATCHED if name in report.measures}
    bad = {name: value for name, value in numbers.items() if not math.isfinite(value)}
    if not report.finite and not bad:
        bad = {"gradient_norm": report.gradient_norm}
    for name, value in bad.items():
        yield Alarm(name, "nonfinite", report.step, value, 0.0)


def _standing(channels: Mapping[str, Channel]) -> tuple[tuple[Alarm, ...], tuple[Alarm, ...]]:
    """Alarms and suspects."""
    alarms, suspects = [], []
    for name, channel in channels.items():
        for direction, drift in channel.drifts.items():
            if drift.alarming:
                alarms.append(Alarm(name, direction.kind, drift.onset, drift.sum, drift.threshold))
            elif drift.suspect:
                suspects.append(Alarm(name, direction.kind, drift.onset, drift.sum, drift.threshold / 2))
    return tuple(alarms), tuple(suspects)


def _curves(name: str, channel: Channel) -> dict[str, float]:
    direction, drift = channel.leading
    return {
        f"wd/z/{name}": direction.sign * drift.z,
        f"wd/sum/{name}": direction.sign * drift.sum,
        f"wd/threshold/{name}": drift.threshold,
    }


def _log(value: float) -> float:
    """To nine digits: mathematical libraries of different machines differ in the last."""
    return round(math.log(value), 9)
