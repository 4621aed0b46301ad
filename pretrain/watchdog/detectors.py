"""The detectors of a run look for hard facts of one step, and for drifts of signals. They are pure: equal reports make
equal findings.

Hard alarms rest on nothing fitted: what is not finite, caps, replicas that differ, and an embedding table that moved
farther than its optimizer can move it. The values of such a step teach the soft channel nothing.

Drifts (`cusum`) are looked for in the signals of the table in `signals`. A signal that a step lacks is left alone. All
are disarmed until the warmup of the learning rate is over and their window is full of values from after it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.step import ASCENDED_LOSS, Alarm, StepReport
from pretrain.watchdog.cusum import Channel
from pretrain.watchdog.signals import Growth, Signal, signals, watched_tables


@dataclass(frozen=True)
class Check:
    """A check holds a measure of the weights against a limit that it must not exceed."""

    measure: str
    kind: str
    """Of the alarm."""
    limit: float
    rank: str
    """Measure that names the rank whose memory is at fault, where one alone is."""


@dataclass(frozen=True)
class Findings:
    """They are what the detectors say of a step."""

    alarms: tuple[Alarm, ...] = ()
    """Hard ones of this step, and soft ones for as long as their sums are above their thresholds."""
    suspects: tuple[Alarm, ...] = ()
    """Sums that have reached half their threshold and are no alarms."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Curves of the signals that this step has: `wd/z/...`, `wd/sum/...` (negative: downwards), `wd/threshold/...`."""
    calibrated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Signals whose thresholds were calibrated in this step: the new ones, by direction."""


class Detectors:
    """They are called once a step on every rank with the same report."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config.watchdog
        self._warmup = config.schedule.warmup_steps
        self._signals = signals(config)
        self._channels = {signal.name: Channel(signal.channel) for signal in self._signals}
        self._growths = {signal.name: Growth() for signal in self._signals if signal.growth_of}
        self._learning_rate = 0.0
        self._checks = tuple(checks(config))
        self._passed = dict.fromkeys((check.measure for check in self._checks), 1)
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

    def odd_rank(self, report: StepReport) -> int | None:
        """It returns the rank whose memory is at fault, by the last check that names one; none names none."""
        named = [report.measures[check.rank] for check in self._checks if check.rank in report.measures]
        return int(named[-1]) if named else None

    def rebaseline(self) -> None:
        """Signals are about to change on purpose: drifts count anew after 64 values."""
        for channel in self._channels.values():
            channel.rebaseline()
        self._growths = {name: Growth() for name in self._growths}

    def _facts(self, report: StepReport) -> Iterator[Alarm]:
        """It yields the alarms of the hard channel."""
        yield from _nonfinite(report, self._signals)
        if report.finite:
            yield from self._over_caps(report)
        for check in self._checks:
            value = report.measures.get(check.measure)
            if value is None:
                continue
            if value > check.limit:
                yield Alarm(check.measure, check.kind, self._passed[check.measure], value, check.limit)
            else:
                self._passed[check.measure] = report.step

    def _over_caps(self, report: StepReport) -> Iterator[Alarm]:
        caps = (
            ("loss", report.loss, self._config.maximum_loss),
            ("gradient_norm", report.gradient_norm, self._config.maximum_gradient_norm),
        )
        for name, value, cap in caps:
            if cap is not None and value > cap:
                yield Alarm(name, "cap", report.step, value, cap)

    def _values(self, report: StepReport) -> Iterator[tuple[str, float]]:
        """It yields what the channels look at, but no signal that the step lacks or that has no logarithm."""
        numbers = _numbers(report, self._signals)
        last_rate = self._learning_rate or report.learning_rate
        for signal in self._signals:
            if signal.measure not in numbers:
                continue
            number = numbers[signal.measure]
            if signal.growth_of:
                value = self._growths[signal.name].after(number, report.learning_rate)
            else:
                value = signal.value(number, last_rate)
            if value is not None:
                yield signal.name, value

    def state_dict(self) -> dict[str, Any]:
        """It returns what goes into checkpoints, JSON-able."""
        return {
            "channels": {name: channel.state_dict() for name, channel in self._channels.items()},
            **{_growth_key(name): vars(growth).copy() for name, growth in self._growths.items()},
            "learning_rate": self._learning_rate,
            "passed": dict(self._passed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of equal settings.

        What it lacks, because earlier versions watched less, is as after a start.
        """
        for name, channel in self._channels.items():
            if name in state["channels"]:
                channel.load_state_dict(state["channels"][name])
        self._growths = {name: Growth(**state.get(_growth_key(name), {})) for name in self._growths}
        self._learning_rate = state["learning_rate"]
        passed = state["passed"]
        self._passed = {check.measure: passed.get(check.measure, 1) for check in self._checks}


def checks(config: RunConfig) -> Iterator[Check]:
    """It yields the checks of the weights: of every table, and of copies."""
    if config.watchdog.reach:
        for prefix in watched_tables(config):
            yield Check(f"{prefix}_reach", "reach", 1.0, rank=f"{prefix}_reach_rank")
    yield Check("replicas_differ", "replicas", 0.0, rank="replicas_odd_rank")


def _growth_key(signal: str) -> str:
    """It returns where the state of a signal of growth lies; that of `tev` has its name from when it was alone."""
    return "growth" if signal == "tev_growth" else signal


def _numbers(report: StepReport, watched: Sequence[Signal]) -> dict[str, float]:
    """It returns what is watched of a report, by measure."""
    numbers = {"loss": report.loss, "gradient_norm": report.gradient_norm}
    names = [signal.measure for signal in watched if signal.measure in report.measures]
    return numbers | {name: report.measures[name] for name in names}


def _nonfinite(report: StepReport, watched: Sequence[Signal]) -> Iterator[Alarm]:
    """It yields an alarm for each number that is none, among what is watched and the losses of both passes."""
    numbers = _numbers(report, watched)
    if ASCENDED_LOSS in report.measures:
        numbers[ASCENDED_LOSS] = report.measures[ASCENDED_LOSS]
    bad = {name: value for name, value in numbers.items() if not math.isfinite(value)}
    if not report.finite and not bad:
        bad = {"gradient_norm": report.gradient_norm}
    for name, value in bad.items():
        yield Alarm(name, "nonfinite", report.step, value, 0.0)


def _standing(channels: Mapping[str, Channel]) -> tuple[tuple[Alarm, ...], tuple[Alarm, ...]]:
    """It returns alarms and suspects."""
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
