"""The watchdog: from the report of a step to a verdict, the same on every rank.

What it carries from step to step is in its state, which goes into checkpoints and comes back with them. What must
not be forgotten by going back (budgets, skips, what was tried) is in the ledger (`recovery`).
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from data_pipeline.ranges import Range
from pretrain.config import RunConfig
from pretrain.optim import decay_start
from pretrain.records import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.alarm_memory import AlarmMemory
from pretrain.watchdog.course import Course
from pretrain.watchdog.detectors import Detectors, Findings
from pretrain.watchdog.health import Health
from pretrain.watchdog.plan import RollbackPlan, plan_rollback
from pretrain.watchdog.policy import Evidence, in_dry_run, judge
from pretrain.watchdog.recovery import Recovery

REMEMBERED_STEPS = 4096
"""Steps whose draws are kept, for the skip of a rollback."""


class Watchdog:
    """Detectors, memory of alarms, health of candidates; the policy judges on what they say."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._detectors = Detectors(config)
        self._memory = AlarmMemory()
        self._course = Course()
        self._draws: dict[int, Range] = {}
        self.health = Health(config.watchdog.horizon)
        self.findings = Findings()
        """Of the last step."""
        self.evidence: Evidence | None = None
        """That the last verdict rests on."""
        self.switch = ""
        """What about the run changes on purpose with the last step, if something does."""
        self.digest = 0
        """Hash of all that was decided at the last step; equal on all ranks, or they have fallen apart."""

    @property
    def suspicious(self) -> bool:
        """Whether the next step deserves a dense look."""
        return bool(self.findings.alarms or self.findings.suspects)

    @property
    def curves(self) -> dict[str, float]:
        """Of the last step, by tag in TensorBoard."""
        if self.evidence is None:
            return {}
        recovery, step = self.evidence.recovery, self.evidence.report.step
        return {
            **self.findings.scalars,
            "wd/alarms": len(self.findings.alarms),
            "wd/suspects": len(self.findings.suspects),
            "wd/rollbacks": len(recovery.rollbacks),
            "wd/skipped_samples": recovery.skipped_samples,
            "wd/steps_since_certified": max(step - recovery.certified_step, 0),
        }

    def judge(self, report: StepReport, state: TrainState, recovery: Recovery, draws: Range) -> Verdict:
        """Look at a step and say what to do; called once for every step, on every rank.

        `state` is that before the step, `draws` are those of its samples.
        """
        self._remember(report.step, draws)
        self.switch = self._switch_at(state)
        if self.switch:
            self.rebaseline()
        self.findings = self._detectors.look(report)
        alarms, suspects = self.findings.alarms, self.findings.suspects
        self._memory = self._memory.after(report.step, alarms, suspects)
        self._course = self._course.after(report.step, report.loss)
        self.evidence = Evidence(alarms, suspects, self._memory, report, state, recovery, self._course)
        verdict = judge(self.evidence, self._config)
        if self._config.watchdog.dry_run:
            verdict = in_dry_run(verdict, self.evidence)
        healthy = verdict.action is Action.PROCEED and not self.suspicious
        self.health.note(report.step, report.loss, healthy=healthy)
        self.digest = digest_of(verdict, self.findings, recovery, draws)
        return verdict

    def rebaseline(self) -> None:
        """Something about the run changes on purpose, and with it the signals: what they were before counts no more."""
        self._detectors.rebaseline()
        self._memory, self._course = AlarmMemory(), Course()
        self.health.forget_losses()

    def _switch_at(self, state: TrainState) -> str:
        schedule = self._config.schedule
        if schedule.kind != "wsd" or state.vetoes_in_a_row:
            return ""
        begins = state.updates == decay_start(self._config.run.steps, schedule)
        return "the learning rate begins to decay" if begins else ""

    def plan(self, verdict: Verdict) -> RollbackPlan:
        """The rollback that the last verdict asks for."""
        assert self.evidence is not None, "a verdict has evidence"
        return plan_rollback(verdict, self.evidence, self._draws, self._config)

    def draws_since(self, step: int) -> tuple[Range, ...]:
        """Draws of the steps from this one on, as far as they are remembered."""
        return tuple(draws for at, draws in sorted(self._draws.items()) if at >= step)

    def _remember(self, step: int, draws: Range) -> None:
        self._draws[step] = draws
        self._draws.pop(step - REMEMBERED_STEPS, None)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able, equal on all ranks."""
        return {
            "detectors": self._detectors.state_dict(),
            "memory": self._memory.state_dict(),
            "course": self._course.losses,
            "health": self.health.state_dict(),
            "draws": [[step, *draws] for step, draws in self._draws.items()],
        }

    def take_up(self, state: Mapping[str, Any], attempt: int, recovery: Recovery) -> None:
        """Go on from the state of a candidate that was taken at `attempt`.

        One from before settings were changed knows nothing of that.
        """
        self.load_state_dict(state)
        if state and attempt <= recovery.declared_attempt:
            self.rebaseline()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; that of a checkpoint without one is a new beginning."""
        self.findings, self.evidence, self.switch, self.digest = Findings(), None, "", 0
        if not state:
            self._detectors, self._memory, self._course = Detectors(self._config), AlarmMemory(), Course()
            self.health, self._draws = Health(self._config.watchdog.horizon), {}
            return
        self._detectors.load_state_dict(state["detectors"])
        self._memory = AlarmMemory.from_state_dict(state["memory"])
        self._course = Course.of(state.get("course", ()))
        self.health.load_state_dict(state["health"])
        self._draws = {step: (start, stop) for step, start, stop in state["draws"]}


def digest_of(verdict: Verdict, findings: Findings, recovery: Recovery, draws: Range) -> int:
    """64 bits of a hash over what a rank has decided at a step and why."""
    decided = (verdict, sorted(findings.scalars.items()), recovery.digest, draws)
    return int.from_bytes(hashlib.sha256(repr(decided).encode()).digest()[:8])
