"""This is a training run without a model: the watchdog's policy judges steps whose findings are made up."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipeline.reading.order import draws_at
from data_pipeline.reading.ranges import SampleRange
from pretrain.checkpoint.tag import Tag
from pretrain.config.run import RunConfig
from pretrain.ledger.history import RunHistory
from pretrain.ledger.record import Kind, Record
from pretrain.step import Action, Alarm, StepReport, TrainState, Verdict
from pretrain.watchdog.policy import JudgeInput, judge
from pretrain.watchdog.recent_alarms import RecentAlarms
from pretrain.watchdog.rollback_plan import plan_rollback

BATCH = 4
HEALTHY = ""


def make_config(**watchdog: Any) -> RunConfig:
    small = {"horizon": 8, "margin": 2, "skip_after": 4, "skipped_fraction": 0.2, "learning_rate_return": 50}
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 2000},
            "model": {
                "num_layers": 1,
                "hidden_size": 8,
                "vocabulary_size": 300,
                "attention": {"num_heads": 1},
            },
            "data": {
                "sources": [{"path": "data"}],
                "sequence_length": 32,
                "micro_batch_size": 1,
                "global_batch_size": BATCH,
            },
            "optimizer": {"learning_rate": 1e-3},
            "watchdog": {**small, **watchdog},
        }
    )


def drift(signal: str, step: int, *, value: float = 15.0, since: int = 1) -> Alarm:
    return Alarm(signal, "high", onset=step - since, value=value, threshold=14.0)


def findings(event: str, step: int) -> tuple[tuple[Alarm, ...], tuple[Alarm, ...]]:
    """It returns alarms and suspects of a step: `loss tev? cap` is an alarm of loss, a suspicion of tev, and one of a
    cap."""
    alarms, suspects = [], []
    for word in event.split():
        if word in ("nonfinite", "cap"):
            alarms.append(Alarm("gradient_norm", word, step, 1e6, 1e4))
        elif word in ("reach", "replicas"):
            alarms.append(Alarm("tev_reach", word, step, 2.0, 1.0))
        elif word.endswith("?"):
            suspects.append(drift(word[:-1], step, value=8.0))
        else:
            alarms.append(drift(word.rstrip("!"), step, value=30.0 if word.endswith("!") else 15.0))
    return tuple(alarms), tuple(suspects)


@dataclass
class Snapshot:
    """It is a checkpoint."""

    tag: str
    state: TrainState
    memory: RecentAlarms


@dataclass
class Run:
    """It takes steps, seals every ten of them, certifies after the horizon, and rolls back."""

    config: RunConfig
    state: TrainState = field(default_factory=TrainState)
    history: RunHistory = field(default_factory=RunHistory)
    memory: RecentAlarms = field(default_factory=RecentAlarms)
    records: list[Record] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    draws: dict[int, SampleRange] = field(default_factory=dict)
    sealed: list[Snapshot] = field(default_factory=list)
    last_alarm: int = -100
    ended: bool = False

    def __post_init__(self) -> None:
        self.sealed.append(Snapshot("step00000000-a1", self.state, self.memory))

    def steps(self, events: Iterable[str]) -> None:
        """It takes a step for each event, until the end."""
        for event in events:
            if self.ended:
                return
            self.step(event)

    def step(self, event: str) -> Verdict:
        step, verdict = self.state.step + 1, self.judge(event)
        self.verdicts.append(verdict)
        self.draws[step] = self.next_draws()
        if verdict.action is Action.HALT:
            self.ended = True
            self.write(Kind.STOPPED, code=5, reason=verdict.reason)
        elif verdict.action is Action.ROLLBACK:
            self.roll_back(verdict, self.given)
        else:
            if verdict.action is Action.VETO:
                self.write(Kind.VETO, reason=verdict.reason, draws=list(self.draws[step]))
            self.state = self.state.after(self.given.report, verdict)
            self.look_after_checkpoints()
        return verdict

    def judge(self, event: str) -> Verdict:
        step = self.state.step + 1
        alarms, suspects = findings(event, step)
        report = StepReport(step, 2.0, 1.0, 1e-3, BATCH, 32 * BATCH, finite="nonfinite" not in event)
        if alarms or suspects:
            self.last_alarm = step
        if alarms:
            self.write(Kind.ALARM, alarms=[vars(alarm) for alarm in alarms])
        self.memory = self.memory.after(step, alarms, suspects)
        self.given = JudgeInput(alarms, suspects, self.memory, report, self.state, self.history)
        return judge(self.given, self.config)

    def next_draws(self) -> SampleRange:
        """It returns the samples that come next: they are consumed in order, and the skipped ones jumped over."""
        positions = self.state.samples + np.arange(BATCH)
        draws = draws_at(positions, self.history.skips)
        return int(draws[0]), int(draws[-1]) + 1

    def roll_back(self, verdict: Verdict, given: JudgeInput) -> None:
        plan = plan_rollback(verdict, given, self.draws, self.config)
        good = [s for s in self.sealed if s.tag in self.history.certified] or self.sealed[:1]
        fitting = [s for s in good if s.state.step <= plan.limit_step and not plan.oldest] or good[:1]
        target, attempt = fitting[-1], self.state.attempt + 1
        rollback = plan.to(target.state.step, target.tag)
        self.add(rollback.intent(self.state.lineage))
        self.sealed = [s for s in self.sealed if s.state.step <= target.state.step]
        self.state = replace(target.state, attempt=attempt, lineage=self.history.lineage + 1)
        if rollback.learning_rate_factor != 1:
            returns = self.config.watchdog.learning_rate_return
            self.write(
                Kind.LEARNING_RATE_EDIT,
                update=self.state.updates,
                factor=rollback.learning_rate_factor,
                return_updates=returns,
                until=rollback.learning_rate_until,
            )
        self.memory, self.last_alarm = target.memory, -100
        self.draws = {step: draws for step, draws in self.draws.items() if step <= self.state.step}
        self.write(Kind.ROLLBACK_DONE, seconds=0.1, tier="disk", proof="")

    def look_after_checkpoints(self) -> None:
        step, horizon = self.state.step, self.config.watchdog.horizon
        if step % 10 == 0:
            tag = str(Tag(attempt=self.state.attempt, step=step))
            self.sealed.append(Snapshot(tag, self.state, self.memory))
            self.write(Kind.SEALED, tag=tag)
        if step - self.last_alarm <= horizon or self.state.vetoes_in_a_row:
            return
        for snapshot in self.sealed:
            ripe = snapshot.state.step + horizon <= step and snapshot.state.step > self.last_alarm
            if ripe and snapshot.tag not in self.history.certified:
                self.write(Kind.CERTIFIED, tag=snapshot.tag, horizon=horizon)

    def write(self, kind: Kind, **fields: Any) -> None:
        self.add(Record(kind, self.state.step, self.state.attempt, self.state.lineage, fields))

    def add(self, record: Record) -> None:
        if record.kind in (Kind.ALARM, Kind.VETO):
            record = replace(record, step=record.step + 1, attempt=record.attempt + 1)
        self.records.append(record)
        self.history = self.history.after(record)

    def rollbacks(self) -> list[str]:
        """It returns the remedies so far."""
        return [str(rollback.remedy) for rollback in self.history.rollbacks]
