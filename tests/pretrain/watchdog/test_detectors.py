"""Detectors: what they see, what they must not see, and what they must not learn."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.spike_rules import RelativeJump, Rule, SixSigma, TenTimesTheMaximum, TwiceTheMean
from pretrain.config.run import RunConfig
from pretrain.models.outline import Outline, TableSize
from pretrain.optim.update_bound import adamw_update_bound
from pretrain.step import StepReport
from pretrain.tasks.gpt.config import GPTConfig
from pretrain.watchdog.baseline import REFILL
from pretrain.watchdog.calibration import HIGHEST, LOWEST, calibrated_threshold
from pretrain.watchdog.cusum import HIGH, LOW, Channel, ChannelSettings, Drift
from pretrain.watchdog.detectors import Detectors, Findings
from pretrain.watchdog.recent_alarms import family
from pretrain.watchdog.signals import GROWTH_STEPS, signals

WINDOW = 64
READY = WINDOW + 16
"""Values after which a channel is armed: the window and the guard."""


def make_detectors(**settings: Any) -> Detectors:
    return Detectors(run_config(**settings))


def run_config(
    *,
    warmup: int = 0,
    probes_every: int = 10,
    optimizer: dict[str, Any] | None = None,
    **watchdog: Any,
) -> RunConfig:
    config = {
        "run": {"name": "t", "steps": 1000},
        "model": {
            "num_layers": 2,
            "hidden_size": 16,
            "vocabulary_size": 100,
            "attention": {"num_heads": 2},
        },
        "data": {
            "sources": [{"path": "x"}],
            "sequence_length": 8,
            "micro_batch_size": 1,
            "global_batch_size": 1,
        },
        "optimizer": {"learning_rate": 1e-3, **(optimizer or {})},
        "schedule": {"warmup_steps": warmup},
        "probes": {"every_steps": probes_every},
        "watchdog": {"window": WINDOW, **watchdog},
    }
    return RunConfig.model_validate(config)


def report(
    step: int,
    loss: float = 3.0,
    norm: float = 1.0,
    *,
    finite: bool = True,
    rate: float = 1e-3,
    **measures: float,
) -> StepReport:
    return StepReport(step, loss, norm, rate, samples=1, tokens=1, finite=finite, measures=measures)


def noise(count: int, seed: int = 0, spread: float = 0.01) -> list[float]:
    return (spread * np.random.default_rng(seed).standard_normal(count)).tolist()


def follow(detectors: Detectors, reports: Iterable[StepReport]) -> list[Findings]:
    return [detectors.look(one) for one in reports]


def noisy_losses(count: int, *, factor: Callable[[int], float] = lambda step: 1.0) -> list[StepReport]:
    return [report(s, 3 * math.exp(e) * factor(s)) for s, e in enumerate(noise(count), 1)]


def first_alarm(findings: Sequence[Findings]) -> tuple[int, str, str, int] | None:
    """Step, signal, kind and onset."""
    for step, found in enumerate(findings, 1):
        for alarm in found.alarms:
            return step, alarm.signal, alarm.kind, alarm.onset
    return None


class TestReach:
    @pytest.mark.parametrize(
        ("beta1", "beta2", "reach"),
        [(0.9, 0.95, 1.165), (0.9, 0.98, 1.698), (0.9, 0.999, 7.270), (0.0, 0.75, 2.0), (0.0, 0.0, 1.0)],
    )
    def test_known_values(self, beta1: float, beta2: float, reach: float) -> None:
        assert adamw_update_bound(beta1, beta2) == pytest.approx(reach, abs=5e-4)

    @pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.81), (0.9, 0.5), (0.99, 0.95), (0.5, 0.0)])
    def test_infinite_where_nothing_can_be_said(self, beta1: float, beta2: float) -> None:
        assert adamw_update_bound(beta1, beta2) == math.inf

    @given(
        st.lists(st.floats(-1e3, 1e3).filter(lambda g: abs(g) > 1e-6), min_size=1, max_size=60),
        st.sampled_from([(0.9, 0.95), (0.9, 0.999), (0.5, 0.9), (0.95, 0.95), (0.0, 0.9)]),
    )
    def test_no_gradients_exceed_it(self, gradients: list[float], betas: tuple[float, float]) -> None:
        assert max(map(abs, adam_updates(gradients, *betas))) <= adamw_update_bound(*betas) * (1 + 1e-9)

    @pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.98), (0.5, 0.9)])
    def test_some_gradients_come_close(self, betas: tuple[float, float]) -> None:
        beta1, beta2 = betas
        growing = [(beta2 / beta1) ** (i - 400) for i in range(400)]
        assert adam_updates(growing, *betas)[-1] > 0.999 * adamw_update_bound(*betas)


def adam_updates(gradients: Sequence[float], beta1: float, beta2: float) -> list[float]:
    m = v = 0.0
    updates = []
    for t, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        updates.append(m / (1 - beta1**t) / math.sqrt(v / (1 - beta2**t)))
    return updates


class TestCalibration:
    def test_independent_residuals_need_no_more(self) -> None:
        increments = np.random.default_rng(0).standard_normal(1000) - 1
        assert calibrated_threshold(increments.tolist(), seed=1, least=14) == 14

    def test_dependent_residuals_need_more_within_the_limits(self) -> None:
        white = np.random.default_rng(0).standard_normal(2000)
        slow = np.convolve(white, np.ones(10) / math.sqrt(10), "valid")
        threshold = calibrated_threshold((slow - 1).tolist(), seed=1, least=14)
        assert 20 < threshold <= HIGHEST
        assert calibrated_threshold((slow - 0.5).tolist(), seed=1, least=14) == HIGHEST

    def test_residuals_that_are_off_need_more(self) -> None:
        residuals = np.random.default_rng(3).standard_normal(1024)
        drifts = (1.0, 0.5, 0.4, 0.3, 0.2)
        thresholds = [calibrated_threshold((residuals - drift).tolist(), seed=1, least=0) for drift in drifts]
        # Siegmund: a normal walk of drift -a crosses h at a rate of a^2 exp(-2 a (h + 1.166)): 6.9, 13.6, 16.7, ...
        assert thresholds[0] == LOWEST
        assert thresholds == sorted(thresholds)
        assert 14 < thresholds[3] < 22 < thresholds[4]

    def test_dependence_counts_where_peaks_are_few(self) -> None:
        generator = np.random.default_rng(2)
        thresholds = []
        for _ in range(8):
            walk = [0.0]
            for new in generator.standard_normal(1000).tolist():
                walk.append(0.5 * walk[-1] + math.sqrt(0.75) * new)
            increments = [value - 2.5 for value in walk]
            thresholds.append(calibrated_threshold(increments, seed=1, least=12))
        # 8.06 times a long-run variance of 3, of which ten lags with falling weights see 2.64.
        assert np.mean(thresholds) == pytest.approx(21.3, abs=1.5)

    def test_same_for_the_same_arguments_only(self) -> None:
        increments = (np.random.default_rng(0).standard_normal(500) - 0.3).tolist()
        draws = [calibrated_threshold(increments, seed=s, least=12) for s in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]

    def test_says_nothing_of_few_residuals_and_never_goes_below_the_configured(self) -> None:
        assert calibrated_threshold([4.0] * 100, seed=1, least=14) == 14
        assert calibrated_threshold([-1.0] * 1000, seed=1, least=40) == 40


class TestChannel:
    settings = ChannelSettings(WINDOW, 14.0)

    def fed(
        self, values: Iterable[float], settings: ChannelSettings | None = None
    ) -> tuple[Channel, list[float]]:
        channel = Channel(settings or self.settings)
        sums = []
        for step, value in enumerate(values, 1):
            channel.look(step, value)
            sums.append(channel.leading[1].sum)
        return channel, sums

    def high(self, channel: Channel) -> Drift:
        return channel.drifts[HIGH]

    def test_armed_once_the_window_is_full(self) -> None:
        assert not self.fed(noise(READY - 1))[0].armed
        assert self.fed(noise(READY))[0].armed

    def test_shift_is_seen_with_its_onset(self) -> None:
        values = noise(300)
        values[250:] = [value + 0.05 for value in values[250:]]
        channel, sums = self.fed(values)
        delay = next(i for i, total in enumerate(sums) if total > 14) - 250
        assert 4 < delay < 12
        assert self.high(channel).onset == pytest.approx(251, abs=2)

    def test_trouble_from_the_first_compared_value_on_began_there(self) -> None:
        values = [*noise(READY), *(0.1 + e for e in noise(20))]
        channel, sums = self.fed(values)
        assert sums[-1] > 14
        assert self.high(channel).onset == READY + 1
        channel.rebaseline()
        assert self.high(channel).onset == 0

    def test_one_value_however_large_is_no_alarm(self) -> None:
        values = noise(300)
        values[250] = 50.0
        _, sums = self.fed(values)
        assert 0 < max(sums) < 4
        assert sums[-1] == 0

    def test_four_extreme_values_are_no_alarm_either(self) -> None:
        values = noise(300)
        values[250:254] = [50.0] * 4
        assert max(self.fed(values)[1]) < 14

    @pytest.mark.parametrize("slope", [1e-3, -1e-3, 5e-5])
    def test_trend_is_no_drift(self, slope: float) -> None:
        both = ChannelSettings(WINDOW, 14.0, directions=(HIGH, LOW))
        values = [slope * i + e for i, e in enumerate(noise(3000))]
        assert max(self.fed(values, both)[1]) < 14

    def test_trouble_is_not_learned_while_suspected(self) -> None:
        shifted = [*noise(200), *(0.1 + e for e in noise(WINDOW))]
        channel, _ = self.fed(shifted)
        assert max(channel.state_dict()["baseline"]["values"]) < 0.05
        assert max(channel.state_dict()["baseline"]["pending"], default=0) < 0.05

    def test_a_new_level_is_accepted_in_the_end(self) -> None:
        _, sums = self.fed([*noise(200), *(0.1 + e for e in noise(800, seed=1))])
        assert max(sums) > 14
        assert max(sums[-500:]) < 14

    def test_low_direction_alone_sees_a_fall(self) -> None:
        values = [*noise(200), *(-0.1 + e for e in noise(30))]
        assert max(self.fed(values)[1]) < 1
        assert max(self.fed(values, ChannelSettings(WINDOW, 14.0, directions=(LOW,)))[1]) > 14

    def test_calm_signals_have_a_floor(self) -> None:
        values = [0.0] * 200 + [1e-3] * 100
        assert max(self.fed(values)[1]) < 14
        assert max(self.fed(values, ChannelSettings(WINDOW, 14.0, floor=1e-4))[1]) > 14

    def test_stride_holds_the_baseline_back_and_not_the_sum(self) -> None:
        every_tenth = ChannelSettings(WINDOW, 14.0, stride=10)
        channel = Channel(every_tenth)
        for i, value in enumerate(noise(80)):
            channel.look(10 * i, value)
        before = channel.state_dict()["baseline"]
        for step in range(791, 797):
            channel.look(step, 1.0)
        assert self.high(channel).sum == 6 * (4 - 1 - 6 / WINDOW**0.5)
        assert channel.state_dict()["baseline"]["values"] == before["values"]

    def test_residuals_of_an_excursion_count_once_it_is_over(self) -> None:
        values = noise(300)
        values[250:253] = [50.0] * 3
        recovered = self.high(self.fed(values)[0])
        calm = self.high(self.fed(noise(250))[0])
        assert max(recovered.increments) == 4 - 1 - 6 / WINDOW**0.5
        assert list(recovered.increments).count(max(recovered.increments)) >= 3
        standing = self.high(self.fed([*noise(250), *[50.0] * 20])[0])
        assert standing.sum > 14
        assert list(standing.increments) == list(calm.increments)[: len(standing.increments)]

    @pytest.mark.parametrize("cut", [1, 50, READY, 251, 255, 400])
    def test_state_is_whole(self, cut: int) -> None:
        values = noise(1200)
        values[250:260] = [0.05] * 10
        whole, _ = self.fed(values)
        first, _ = self.fed(values[:cut])
        second = Channel(self.settings)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for step, value in enumerate(values[cut:], cut + 1):
            second.look(step, value)
        assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())


class TestHardChannel:
    def hard(self, one: StepReport, **watchdog: Any) -> list[tuple[str, str]]:
        return [(a.signal, a.kind) for a in make_detectors(**watchdog).look(one).alarms]

    @pytest.mark.parametrize(
        ("one", "signal"),
        [
            (report(1, math.nan, finite=False), "loss"),
            (report(1, 3.0, math.inf, finite=False), "gradient_norm"),
            (report(1, 3.0, 1.0, finite=False), "gradient_norm"),
            (report(1, 3.0, 1.0, finite=False, ascended_loss=math.inf), "ascended_loss"),
            (report(1, tev_max=math.nan), "tev_max"),
            (report(1, attention_entropy_min=math.nan), "attention_entropy_min"),
        ],
    )
    def test_what_is_not_finite(self, one: StepReport, signal: str) -> None:
        assert self.hard(one) == [(signal, "nonfinite")]

    def test_caps(self) -> None:
        assert self.hard(report(1, 9.0, 50.0)) == []
        assert self.hard(report(1, 9.0, 50.0), maximum_loss=8.0) == [("loss", "cap")]
        assert self.hard(report(1, 9.0, 50.0), maximum_gradient_norm=40.0) == [("gradient_norm", "cap")]
        assert self.hard(report(1, 8.0), maximum_loss=8.0) == []

    def test_reach(self) -> None:
        assert self.hard(report(1, tev_reach=1.01)) == [("tev_reach", "reach")]
        assert self.hard(report(1, tev_reach=1.0)) == []
        assert self.hard(report(1, tev_reach=9.0), reach=False) == []

    def test_trouble_with_replicas_began_after_the_last_check_that_passed(self) -> None:
        detectors = make_detectors()
        follow(detectors, [report(10, replicas_differ=0.0), *map(report, range(11, 20))])
        (alarm,) = detectors.look(report(20, replicas_differ=1.0)).alarms
        assert (alarm.kind, alarm.onset, alarm.value) == ("replicas", 10, 1.0)

    def test_a_first_check_that_fails_leaves_no_step_to_trust(self) -> None:
        (alarm,) = make_detectors().look(report(20, replicas_differ=1.0)).alarms
        assert alarm.onset == 1

    @pytest.mark.parametrize(
        "bad",
        [
            {"loss": math.nan, "finite": False},
            {"loss": 3.0, "norm": math.inf, "finite": False},
            {"loss": 100.0},
            {"tev_reach": 2.0},
        ],
    )
    def test_such_a_step_teaches_nothing(self, bad: dict[str, Any]) -> None:
        detectors = make_detectors(maximum_loss=50.0)
        follow(detectors, noisy_losses(100))
        before = json.dumps(detectors.state_dict()["channels"])
        assert detectors.look(report(101, **bad)).alarms
        assert json.dumps(detectors.state_dict()["channels"]) == before

    def test_a_nan_is_over_at_once(self) -> None:
        detectors = make_detectors()
        reports = noisy_losses(200)
        reports[150] = report(151, math.nan, finite=False)
        assert [bool(f.alarms) for f in follow(detectors, reports)] == [s == 151 for s in range(1, 201)]


class TestSoftChannel:
    def test_divergence_alarms_with_its_onset_after_a_suspicion(self) -> None:
        findings = follow(make_detectors(), noisy_losses(240, factor=lambda s: 1.01 ** max(0, s - 200)))
        alarm = first_alarm(findings)
        assert alarm is not None
        step, signal, kind, onset = alarm
        assert (signal, kind) == ("loss", "high")
        assert 205 < step < 225
        assert abs(onset - 201) <= 8
        suspicion = next(s for s, f in enumerate(findings, 1) if f.suspects)
        assert onset < suspicion < step
        assert {a.signal for a in findings[step - 1].suspects} <= {"gradient_norm"}

    def test_sudden_fall_of_the_loss_alarms(self) -> None:
        findings = follow(make_detectors(), noisy_losses(240, factor=lambda s: 1.0 if s <= 200 else 0.8))
        assert first_alarm(findings)[1:3] == ("loss", "low")  # type: ignore[index]

    def test_steep_healthy_fall_does_not(self) -> None:
        losses = noisy_losses(3000, factor=lambda s: (2 + 8 * (s / 200) ** -0.5) / 3)
        assert first_alarm(follow(make_detectors(), losses)) is None

    def test_an_alarm_stands_while_its_sum_does_and_its_signal_is_not_measured(self) -> None:
        detectors = make_detectors()
        for step in range(1, 1401):
            value = 2.0 if step <= 1200 else 0.2
            measures = {"attention_entropy_mean": value} if step % 10 == 0 else {}
            found = detectors.look(report(step, **measures))
        assert ("attention_entropy_mean", "low") in [(a.signal, a.kind) for a in found.alarms]
        assert [a.signal for a in detectors.look(report(1401)).alarms] == ["attention_entropy_mean"]

    def test_disarmed_until_warmup_is_over_and_the_window_full(self) -> None:
        def armed_at(warmup: int) -> int:
            findings = follow(make_detectors(warmup=warmup), noisy_losses(300))
            return next(s for s, f in enumerate(findings, 1) if "wd/sum/loss" in f.scalars)

        assert armed_at(0) == READY
        assert armed_at(100) == READY + 100

    def test_values_from_the_warmup_are_not_the_baseline(self) -> None:
        losses = noisy_losses(400, factor=lambda s: 0.5 if s <= 100 else 1.0)
        assert first_alarm(follow(make_detectors(warmup=100), losses)) is None
        assert first_alarm(follow(make_detectors(warmup=0), losses)) is not None

    def test_curves(self) -> None:
        found = follow(make_detectors(), noisy_losses(240, factor=lambda s: 1.0 if s <= 200 else 0.9))[-1]
        assert found.scalars["wd/sum/loss"] < -14
        assert found.scalars["wd/z/loss"] == -4
        assert found.scalars["wd/threshold/loss"] == 14
        assert found.scalars["wd/z/gradient_norm"] == 0

    def test_update_is_judged_by_the_learning_rate_that_made_it(self) -> None:
        def reports(factor: float) -> list[StepReport]:
            rates = [1e-3 * (1 - step / 4000) for step in range(3000)]
            return [
                report(s, rate=rates[s], update_rms=0.2 * rates[s - 1] * (factor if s > 2500 else 1))
                for s in range(1, 3000)
            ]

        assert first_alarm(follow(make_detectors(probes_every=1), reports(1.0))) is None
        assert first_alarm(follow(make_detectors(probes_every=1), reports(2.0)))[1] == "update_rms"  # type: ignore[index]

    def test_an_update_is_divided_by_the_rate_of_the_step_before(self) -> None:
        detectors = make_detectors(probes_every=1)
        rates = [1e-3, 3e-3, 2e-3] * 40
        follow(detectors, [report(s, rate=rates[s], update_rms=0.2 * rates[s - 1]) for s in range(1, 120)])
        values = detectors.state_dict()["channels"]["update_rms"]["baseline"]["values"]
        assert values[1:] == pytest.approx([math.log(0.2)] * (len(values) - 1), abs=1e-8)

    def test_slow_fall_of_the_loss_is_no_sudden_one(self) -> None:
        def losses(factor: float) -> list[StepReport]:
            return noisy_losses(700, factor=lambda s: 1.0 if s <= 600 else factor)

        assert first_alarm(follow(make_detectors(window=512), losses(0.98))) is None
        assert first_alarm(follow(make_detectors(window=512), losses(1.02))) is not None

    def test_numbers_without_a_logarithm_are_left_out(self) -> None:
        found = make_detectors().look(report(1, 0.0, 0.0, tev_std=0.0, gradient_variance=-1e-9))
        assert found == Findings()

    def test_undeclared_change_alarms_and_a_declared_one_does_not(self) -> None:
        reports = noisy_losses(600, factor=lambda s: 1.0 if s <= 300 else 1.2)
        assert first_alarm(follow(make_detectors(), reports)) is not None
        declared = make_detectors()
        follow(declared, reports[:300])
        declared.rebaseline()
        assert first_alarm(follow(declared, reports[300:])) is None

    def test_after_a_declared_change_few_values_are_enough(self) -> None:
        detectors = make_detectors(window=512)
        follow(detectors, noisy_losses(600))
        detectors.rebaseline()
        later = [report(600 + s, 4 * math.exp(e)) for s, e in enumerate(noise(200), 1)]
        findings = follow(detectors, later)
        armed = next(s for s, f in enumerate(findings, 1) if "wd/sum/loss" in f.scalars)
        assert armed == REFILL + 16


class TestTev:
    def reports(self, steps: int, tev: Callable[[int], float], rate: float = 1e-3) -> list[StepReport]:
        return [report(s, rate=rate, tev_mean=tev(s)) for s in range(1, steps + 1)]

    def test_steady_and_slowing_growth_are_healthy(self) -> None:
        growing = self.reports(3000, lambda s: 0.02 + 2e-4 * s)
        slowing = self.reports(3000, lambda s: 0.02 + 0.1 * math.log1p(s / 100))
        for reports in (growing, slowing):
            assert first_alarm(follow(make_detectors(), reports)) is None

    def test_creeping_common_drift_alarms(self) -> None:
        """0.2 % of a common vector as long as the rows, each step; at high learning rates this hides in waves."""

        def drifting(step: int) -> float:
            return 0.25 * math.sqrt(1 + (0.002 * max(0, step - 1000)) ** 2)

        alarm = first_alarm(follow(make_detectors(), self.reports(1200, drifting, rate=3e-4)))
        assert alarm is not None
        assert alarm[1:3] == ("tev_growth", "high")
        assert 1000 < alarm[0] < 1150
        assert 1000 - GROWTH_STEPS <= alarm[3] < alarm[0]

    def test_jump_alarms(self) -> None:
        alarm = first_alarm(follow(make_detectors(), self.reports(400, lambda s: 0.05 if s <= 300 else 0.06)))
        assert alarm is not None
        assert alarm[1:3] == ("tev_mean", "high")
        assert 300 < alarm[0] <= 310

    def test_growth_is_by_the_learning_rate(self) -> None:
        """Five times the learning rate makes five times the growth: no drift of the weights' own."""
        detectors, tev = make_detectors(), 0.2
        for step in range(1, 1500):
            rate = 1e-4 if step <= 1000 else 5e-4
            found = detectors.look(report(step, rate=rate, tev_mean=tev))
            assert not found.alarms
            tev += 0.1 * rate


class TestShift:
    """The mean row's speed, in learning rates: healthy ones scatter by a fifth, in waves of some twenty steps."""

    def reports(self, steps: int, factor: Callable[[int], float]) -> list[StepReport]:
        waves = np.convolve(noise(steps + 40, spread=1.0), np.ones(20) / math.sqrt(20), "valid")
        rates = [1e-3 * (1 - 0.9 * s / steps) for s in range(steps + 1)]
        return [
            report(s, rate=rates[s], tev_shift=0.06 * rates[s - 1] * math.exp(0.2 * waves[s]) * factor(s))
            for s in range(1, steps + 1)
        ]

    def test_waves_are_healthy(self) -> None:
        assert first_alarm(follow(make_detectors(), self.reports(20_000, lambda s: 1.0))) is None

    def test_a_vector_that_all_rows_take_up_alarms_in_tens_of_steps(self) -> None:
        """Twice the speed of the others together, at a right angle to it."""
        alarm = first_alarm(
            follow(make_detectors(), self.reports(700, lambda s: 1.0 if s <= 600 else math.sqrt(5)))
        )
        assert alarm is not None
        assert alarm[1:3] == ("tev_shift", "high")
        assert 600 < alarm[0] <= 640

    def test_it_is_of_the_family_of_tev(self) -> None:
        assert family("tev_shift") == "tev"


ALWAYS = ("loss", "gradient_norm", "gradient_variance", "update_rms")
ENTROPIES = ("attention_entropy_min", "attention_entropy_mean")
TEV = ("tev_mean", "tev_std", "tev_max", "tev_growth", "tev_shift")
TARGET = ("tev_target_mean", "tev_target_std", "tev_target_max", "tev_target_growth", "tev_target_shift")


class WithoutTables(GPTConfig):
    """A model that looks nothing up."""

    def outline(self, data: Any) -> Outline:
        outline = super().outline(data)
        return replace(outline, layers=tuple(replace(layer, table=None) for layer in outline.layers))


class WithTwoTables(GPTConfig):
    """Source and target have a table each; that of the head is measured only."""

    def outline(self, data: Any) -> Outline:
        outline = super().outline(data)
        first, second, *others, head = outline.layers
        target = replace(second, name="target", table=TableSize(50, 16, "tev_target"))
        head = replace(head, tied_to="", table=TableSize(50, 16, "tev_head", watched=False))
        return replace(outline, layers=(first, target, *others, head))


def with_model(model: type[GPTConfig], **settings: Any) -> RunConfig:
    config = run_config(**settings)
    return config.model_copy(update={"model": model(**config.model.model_dump())})


def names(config: RunConfig) -> list[str]:
    return [signal.name for signal in signals(config)]


class TestTable:
    """What is watched follows from the tables of the model and from the optimizer."""

    def test_of_a_model_with_one_table(self) -> None:
        assert names(run_config()) == [*ALWAYS, "update_rms/embedding", *ENTROPIES, *TEV]

    def test_of_a_model_without_tables(self) -> None:
        config = with_model(WithoutTables)
        assert names(config) == [*ALWAYS, *ENTROPIES]
        detectors = Detectors(config)
        assert not detectors.look(report(1, tev_mean=math.nan, tev_reach=9.0)).alarms
        assert detectors.look(report(2, replicas_differ=1.0)).alarms

    def test_of_a_model_with_two(self) -> None:
        config = with_model(WithTwoTables)
        updates = ("update_rms/embedding", "update_rms/target")
        assert names(config) == [*ALWAYS, *updates, *ENTROPIES, *TEV, *TARGET]

    def test_each_table_has_its_own_checks_and_growth(self) -> None:
        detectors = Detectors(with_model(WithTwoTables))
        (alarm,) = detectors.look(report(1, tev_reach=0.5, tev_target_reach=1.5)).alarms
        assert (alarm.signal, alarm.kind) == ("tev_target_reach", "reach")
        (alarm,) = detectors.look(report(2, tev_target_max=math.nan)).alarms
        assert (alarm.signal, alarm.kind, family(alarm.signal)) == ("tev_target_max", "nonfinite", "tev")
        steps = [report(s, tev_mean=0.1 + 1e-4 * s, tev_target_mean=0.1 + 3e-4 * s) for s in range(3, 60)]
        follow(detectors, steps)
        state = json.loads(json.dumps(detectors.state_dict()))
        grown = {
            name: channel["baseline"]["pending"] + channel["baseline"]["values"]
            for name, channel in state["channels"].items()
        }
        assert grown["tev_growth"] == pytest.approx([0.1] * 7)
        assert grown["tev_target_growth"] == pytest.approx([0.3] * 7)
        again = Detectors(with_model(WithTwoTables))
        again.load_state_dict(state)
        assert json.dumps(again.state_dict()) == json.dumps(detectors.state_dict())

    def test_a_state_of_one_table_is_taken_up_with_two(self) -> None:
        one = make_detectors()
        follow(one, [report(s, tev_mean=0.1, tev_reach=0.5) for s in range(1, 11)])
        two = Detectors(with_model(WithTwoTables))
        two.load_state_dict(json.loads(json.dumps(one.state_dict())))
        state = two.state_dict()
        assert state["growth"] == one.state_dict()["growth"]
        assert state["tev_target_growth"]["start"] is None
        assert state["passed"] == {"tev_reach": 10, "tev_target_reach": 1, "replicas_differ": 1}

    def test_of_an_optimizer_whose_updates_go_by_the_gradient(self) -> None:
        """No learning rate says how far a weight moves: TEV has no growth in that unit, and no floor in it."""
        fast = {"learning_rate": 0.1}
        rows = {signal.name: signal for signal in signals(run_config(optimizer={"kind": "sgd", **fast}))}
        assert list(rows) == [
            *ALWAYS,
            "update_rms/embedding",
            *ENTROPIES,
            *(n for n in TEV if n != "tev_growth"),
        ]
        by_rate = {signal.name: signal for signal in signals(run_config(optimizer=fast))}
        assert by_rate["tev_max"].channel.floor == 20 * 0.1
        assert rows["tev_max"].channel.floor == 2e-3
        assert rows["tev_shift"] == by_rate["tev_shift"]
        detectors = make_detectors(optimizer={"kind": "sgd", **fast})
        jump = [report(s, rate=0.1, tev_mean=0.05 if s <= 300 else 0.06) for s in range(1, 401)]
        assert first_alarm(follow(detectors, jump))[1:3] == ("tev_mean", "high")  # type: ignore[index]


class TestDeterminism:
    def reports(self, count: int) -> list[StepReport]:
        rows = zip(noise(count), noise(count, seed=1, spread=0.1), strict=True)
        return [
            report(
                s,
                3 * math.exp(a) * (1.01 ** max(0, s - 900)),
                math.exp(b),
                rate=1e-3 * (1 + s % 3),
                tev_mean=0.02 + 1e-5 * s,
                update_rms=1e-4 * (1 + (s - 1) % 3) * math.exp(b),
                **({"attention_entropy_min": 1 + b, "gradient_variance": math.exp(b)} if s % 2 == 0 else {}),
            )
            for s, (a, b) in enumerate(rows, 1)
        ]

    @pytest.mark.parametrize("cut", [1, 77, 500, 905, 920])
    def test_restored_detectors_go_on_to_the_bit(self, cut: int) -> None:
        reports = self.reports(960)
        whole, first, second = (make_detectors(probes_every=2) for _ in range(3))
        expected = follow(whole, reports)
        follow(first, reports[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        assert follow(second, reports[cut:]) == expected[cut:]
        assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())
        assert any(found.alarms for found in expected)

    def test_a_saved_state_does_not_change_afterwards(self) -> None:
        detectors = make_detectors()
        follow(detectors, self.reports(300))
        state = detectors.state_dict()
        before = json.dumps(state)
        follow(detectors, noisy_losses(100))
        assert json.dumps(state) == before


class TestHealthyRun:
    @pytest.mark.parametrize("window", [512, 64])
    def test_no_false_alarm_in_heavy_tails(self, window: int) -> None:
        generator = np.random.default_rng(5)
        e = 0.01 * generator.standard_t(4, 20_000) / math.sqrt(2)
        outliers = generator.random(20_000) < 1e-3
        e[outliers] += 0.01 * generator.uniform(8, 20, int(outliers.sum()))
        detectors = make_detectors(window=window)
        for step, value in enumerate(e.tolist(), 1):
            found = detectors.look(report(step, (2 + 8 * (step / 200) ** -0.5) * math.exp(value)))
            assert not found.alarms


class TestRulesOfOthers:
    """That the re-implementations show what the originals are known for."""

    def fires(self, rule: Rule, losses: Iterable[float]) -> list[int]:
        return [step for step, loss in enumerate(losses, 1) if rule.look(step, loss)]

    def test_six_sigma_loses_a_window_to_one_nan(self) -> None:
        losses = [3 * math.exp(e) for e in noise(400)]
        losses[200] = math.nan
        assert self.fires(SixSigma(), losses) == list(range(201, 330))

    def test_six_sigma_is_blind_after_a_spike(self) -> None:
        losses = [3 * math.exp(e) for e in noise(400)]
        losses[200] = 30.0
        losses[201:206] = [3.6] * 5
        assert self.fires(SixSigma(), losses) == [201]

    def test_twice_the_mean_needs_five_in_a_row(self) -> None:
        assert self.fires(TwiceTheMean(), [3.0] * 200 + [9.0] * 4 + [3.0] * 9) == []
        assert self.fires(TwiceTheMean(), [3.0] * 200 + [9.0] * 5)[0] == 205

    def test_relative_jump_locks_on_a_low_loss(self) -> None:
        assert self.fires(RelativeJump(), [3.0] * 10 + [2.0] + [3.0] * 50) == list(range(12, 62))
        assert self.fires(RelativeJump(), [3.0, math.nan, 30.0]) == []

    def test_ten_times_the_maximum(self) -> None:
        assert self.fires(TenTimesTheMaximum(), [7.6] * 200 + [75.0, 77.0, math.inf]) == [202, 203]
