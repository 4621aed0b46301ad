"""The watchdog turns the report of a step into a verdict, the same on every rank.

What it carries from step to step is in its state, which goes into checkpoints and comes back with them. What must
not be forgotten by going back (budgets, skips, what was tried) is in the ledger (`history`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_pipeline.parsing import parsed_as
from data_pipeline.reading.ranges import SampleRange
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError
from pretrain.ledger.history import RunHistory
from pretrain.optim.schedule import decay_start, restarts, steps_down
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.detectors import Detectors, Findings
from pretrain.watchdog.health import Health
from pretrain.watchdog.loss_trend import LossTrend
from pretrain.watchdog.policy import JudgeInput, in_dry_run, judge
from pretrain.watchdog.recent_alarms import RecentAlarms
from pretrain.watchdog.rollback_plan import RollbackPlan, plan_rollback
from pretrain.watchdog.standstill import STANDSTILL, Standstill

REMEMBERED_STEPS = 4096
"""Steps whose ranges of samples are kept, for the skip of a rollback."""


class Watchdog:
    """It has detectors, recent alarms and the health of candidates; the policy judges on what they say."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._detectors = Detectors(config)
        self._recent = RecentAlarms()
        self._trend = LossTrend()
        self._still = Standstill()
        self._draws: dict[int, SampleRange] = {}
        self.health = Health(config.watchdog.horizon)
        self.findings = Findings()
        """Of the last step."""
        self.given: JudgeInput | None = None
        """That the last verdict rests on."""
        self.switch = ""
        """What about the run changes on purpose with the last step, if something does."""
        self.digest = 0
        """Hash of all that was decided at the last step; equal on all ranks, or they have fallen apart."""

    @property
    def suspicious(self) -> bool:
        """It says whether the last step was not healthy."""
        return bool(self.findings.alarms or self.findings.suspects)

    @property
    def curious(self) -> bool:
        """It says whether the next step deserves a full look; what stands still has been seen already."""
        drifting = any(alarm.kind != STANDSTILL for alarm in self.findings.alarms)
        return drifting or bool(self.findings.suspects)

    @property
    def curves(self) -> dict[str, float]:
        """It returns what there is to draw of the last step, by tag in TensorBoard."""
        if self.given is None:
            return {}
        history, step = self.given.history, self.given.report.step
        return {
            **self.findings.scalars,
            "wd/alarms": len(self.findings.alarms),
            "wd/suspects": len(self.findings.suspects),
            "wd/rollbacks": len(history.rollbacks),
            "wd/skipped_samples": history.skipped_samples,
            "wd/steps_since_certified": max(step - history.certified_step, 0),
        }

    def judge(
        self, report: StepReport, state: TrainState, history: RunHistory, draws: SampleRange
    ) -> Verdict:
        """Look at a step and say what to do; it is called once for every step, on every rank.

        `state` is that before the step, `draws` the range of its samples.
        """
        self._remember(report.step, draws)
        self.switch = self._switch_at(state)
        if self.switch:
            self.rebaseline()
        self._still = self._still.after(report)
        found = self._detectors.look(report)
        self.findings = replace(found, alarms=(*found.alarms, *self._still.alarms))
        alarms, suspects = self.findings.alarms, self.findings.suspects
        self._recent = self._recent.after(report.step, alarms, suspects)
        self._trend = self._trend.after(report.step, report.loss)
        self.given = JudgeInput(alarms, suspects, self._recent, report, state, history, self._trend)
        verdict = judge(self.given, self._config)
        if self._config.watchdog.dry_run:
            verdict = in_dry_run(verdict, self.given)
        healthy = verdict.action is Action.PROCEED and not self.suspicious
        self.health.note(report.step, report.loss, healthy=healthy)
        self.digest = digest_of(verdict, self.findings, history, draws)
        return verdict

    def odd_rank(self, report: StepReport) -> int | None:
        """It returns the rank whose memory is at fault, where the measures of a step name one."""
        return self._detectors.odd_rank(report)

    def rebaseline(self) -> None:
        """Begin baselines anew: something about the run changes on purpose, and with it the signals."""
        self._detectors.rebaseline()
        self._recent, self._trend = RecentAlarms(), LossTrend()
        self.health.forget_losses()

    def _switch_at(self, state: TrainState) -> str:
        schedule, total = self._config.schedule, self._config.run.steps
        if state.vetoes_in_a_row:
            return ""
        if schedule.kind == "wsd" and state.updates == decay_start(total, schedule):
            return "the learning rate begins to decay"
        if schedule.kind == "step" and state.updates in steps_down(total, schedule):
            return "the learning rate goes down by a step"
        if schedule.kind == "cosine_restarts" and state.updates in restarts(total, schedule):
            return "the learning rate begins again at its peak"
        return ""

    def plan(self, verdict: Verdict) -> RollbackPlan:
        """It returns the rollback that the last verdict asks for."""
        assert self.given is not None, "a verdict has evidence"
        return plan_rollback(verdict, self.given, self._draws, self._config)

    def draws_since(self, step: int) -> tuple[SampleRange, ...]:
        """It returns the ranges of samples of the steps from this one on, as far as they are remembered."""
        return tuple(draws for at, draws in sorted(self._draws.items()) if at >= step)

    def _remember(self, step: int, draws: SampleRange) -> None:
        self._draws[step] = draws
        self._draws.pop(step - REMEMBERED_STEPS, None)

    def state_dict(self) -> dict[str, Any]:
        """It returns what goes into checkpoints: JSON-able, equal on all ranks."""
        return {
            "detectors": self._detectors.state_dict(),
            "memory": self._recent.state_dict(),
            "course": self._trend.losses,
            "still": self._still.state_dict(),
            "health": self.health.state_dict(),
            "draws": [[step, *draws] for step, draws in self._draws.items()],
        }

    def load_state(self, state: Mapping[str, Any], attempt: int, history: RunHistory) -> None:
        """Go on from the state of a candidate that was taken at `attempt`.

        One from before settings were changed knows nothing of that. Raises CheckpointError for what is no state of a
        watchdog.
        """
        with parsed_as(CheckpointError, "saved state of the watchdog"):
            self._load_state_dict(state)
        if state and attempt <= history.declared_attempt:
            self.rebaseline()

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; that of a checkpoint without one is a new beginning."""
        self.findings, self.given, self.switch, self.digest = Findings(), None, "", 0
        if not state:
            self._detectors, self._recent, self._trend = Detectors(self._config), RecentAlarms(), LossTrend()
            self.health, self._draws, self._still = Health(self._config.watchdog.horizon), {}, Standstill()
            return
        self._detectors.load_state_dict(state["detectors"])
        self._recent = RecentAlarms.from_state_dict(state["memory"])
        self._trend = LossTrend.of(state.get("course", ()))
        self._still = Standstill.from_state_dict(state.get("still", {}))
        self.health.load_state_dict(state["health"])
        self._draws = {step: (start, stop) for step, start, stop in state["draws"]}


def digest_of(verdict: Verdict, findings: Findings, history: RunHistory, draws: SampleRange) -> int:
    """It returns 64 bits of a hash over what a rank has decided at a step and why."""
    decided = (verdict, sorted(findings.scalars.items()), history.digest, draws)
    return int.from_bytes(hashlib.sha256(repr(decided).encode()).digest()[:8])
