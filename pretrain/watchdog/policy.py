"""The policy decides, from what the detectors have found, what is done about it.

Its functions are pure, and their arguments are equal on all ranks, so all ranks come to the same verdict.

    memory fault (replicas differ, unreachable)        -> rollback, same samples again (REPLAY)
    drift: loss; TEV with any second suspicion;
           two others together                         -> rollback, samples left out (SKIP)
    not finite, or over a cap                          -> veto; too many of them -> rollback (SKIP)

A rollback whose trouble comes back climbs the ladder SKIP, DEEPER, DEEPEST, HALT; so does one whose budget is spent.
Drifts that the loss has no part in are left alone while the loss still falls, and where nothing is left to try: they
neither take back a run that gets better nor end one that gets no worse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pretrain.config.run import RunConfig
from pretrain.ledger.history import Rollback, RunHistory
from pretrain.step import ASCENDED_LOSS, Action, Alarm, Remedy, StepReport, TrainState, Verdict
from pretrain.watchdog.budgets import rollback_budget, skip_budget, veto_budget
from pretrain.watchdog.loss_trend import LossTrend
from pretrain.watchdog.recent_alarms import DRIFTS, RecentAlarms, family

MEMORY_FAULTS = ("reach", "replicas")
"""Kinds of alarms that no training could have caused."""
BAD_NUMBERS = ("nonfinite", "cap")
"""Kinds of alarms that forbid this one update."""

LADDER = (Remedy.SKIP, Remedy.DEEPER, Remedy.DEEPEST)
WIDTH: Mapping[Remedy, int] = {Remedy.SKIP: 1, Remedy.REPLAY: 1, Remedy.DEEPER: 2, Remedy.DEEPEST: 4}
"""Remedy -> multiple of `margin` and `skip_after`."""
LEARNING_RATE_FACTOR: Mapping[Remedy, float] = {
    Remedy.SKIP: 1.0,
    Remedy.REPLAY: 1.0,
    Remedy.DEEPER: 0.5,
    Remedy.DEEPEST: 0.25,
}

SAME_PLACE = (
    "each time at this step, with the same samples, which memory does not do: look for what writes into the weights "
    "there, such as an optimizer, a kernel or a hook of your own"
)
"""What is said of faults that a replay brings back at the very step."""

RELAPSE_HORIZONS = 4
"""Certification horizons past the place of a rollback in which new trouble counts as the old one."""
RECOVERIES_WITHOUT_PROGRESS = 3
MAX_VETOES_IN_A_ROW = 50
"""A model whose every gradient is non-finite does not come back by itself."""


@dataclass(frozen=True)
class JudgeInput:
    """It is all that a verdict rests on."""

    alarms: tuple[Alarm, ...]
    """Of this step."""
    suspects: tuple[Alarm, ...]
    recent: RecentAlarms
    """With this step in it."""
    report: StepReport
    state: TrainState
    """Before this step."""
    history: RunHistory
    trend: LossTrend = field(default_factory=LossTrend)
    """With the loss of this step."""

    @property
    def attempt(self) -> int:
        """It is the attempt of this step."""
        return self.state.attempt + 1

    def of_kind(self, kinds: Sequence[str]) -> tuple[Alarm, ...]:
        return tuple(alarm for alarm in self.alarms if alarm.kind in kinds)


def judge(given: JudgeInput, config: RunConfig) -> Verdict:
    """It says what to do with the update of this step and with the run."""
    if faults := given.of_kind(MEMORY_FAULTS):
        return _replay(faults, given, config)
    left_alone = ""
    if drifts := _corroborated(given):
        onset = min(alarm.onset for alarm in drifts)
        by_loss = any(s.certain and _by_loss(s.alarm) for s in given.recent.sightings)
        verdict = _climb(_summary(drifts), drifts, onset, given, config)
        if by_loss or not (verdict.action is Action.HALT or given.trend.falling(onset)):
            return verdict
        why = "the loss has not moved" if verdict.action is Action.HALT else "the loss still falls"
        left_alone = f"left alone, as {why}: {verdict.reason}"
    bad = given.of_kind(BAD_NUMBERS)
    if bad or not given.report.finite:
        return _withhold(bad, given, config)
    return Verdict(Action.PROCEED, left_alone)


def judge_finite(report: StepReport, state: TrainState) -> Verdict:
    """This judge of a run without a watchdog withholds updates from non-finite losses or gradients, and ends a run that
    has nothing else any more."""
    if report.finite:
        return Verdict(Action.PROCEED)
    reason = f"{_numbers_of(report)} at step {report.step}"
    if state.vetoes_in_a_row >= MAX_VETOES_IN_A_ROW:
        return Verdict(Action.HALT, f"{reason}, non-finite for {state.vetoes_in_a_row + 1} steps in a row")
    return Verdict(Action.VETO, f"non-finite {reason}")


def _numbers_of(report: StepReport) -> str:
    """It tells the numbers of a step that make it finite, those of both passes where there are two."""
    ascended = report.measures.get(ASCENDED_LOSS)
    second = "" if ascended is None else f", ascended loss {ascended}"
    return f"loss {report.loss}{second} and gradient norm {report.gradient_norm}"


def in_dry_run(verdict: Verdict, given: JudgeInput) -> Verdict:
    """It says what is done about a verdict where only non-finite updates are withheld; the reason is kept."""
    plain = judge_finite(given.report, given.state)
    if verdict.action is Action.PROCEED or plain.action is not Action.PROCEED:
        return plain
    deed = f"{verdict.action} ({verdict.remedy})" if verdict.remedy else str(verdict.action)
    return Verdict(Action.PROCEED, f"dry run, no {deed}: {verdict.reason}", verdict.alarms, verdict.onset)


def _corroborated(given: JudgeInput) -> tuple[Alarm, ...]:
    """It returns the drifts that together are enough for a rollback; none if they are not, or if nothing is new."""
    drifts = given.of_kind(DRIFTS)
    if not drifts and not given.suspects:
        return ()
    if alone := tuple(filter(_by_loss, drifts)):
        return alone
    alarmed = given.recent.families(certain=True)
    suspected = given.recent.families(certain=False) if "tev" in alarmed else frozenset()
    if len(alarmed | suspected) < 2:
        return ()
    return tuple(
        sighting.alarm
        for sighting in given.recent.sightings
        if sighting.certain or family(sighting.alarm.signal) in suspected - alarmed
    )


def _by_loss(alarm: Alarm) -> bool:
    """It says whether the loss itself shows that it has become worse.

    A fall is one signal among others: a model that leaves a plateau falls fast. No other signal is enough by itself: a
    sum grows for as long as a deviation stays, so that TEV far over its threshold is still one witness.
    """
    return family(alarm.signal) == "loss" and alarm.kind == "high"


def _withhold(bad: tuple[Alarm, ...], given: JudgeInput, config: RunConfig) -> Verdict:
    """It vetoes one update, but not too many one after the other."""
    report, row = given.report, given.state.vetoes_in_a_row
    reason = _summary(bad) or f"non-finite {_numbers_of(report)}"
    budget = veto_budget(given.history, config, given.attempt)
    if row < config.watchdog.vetoes_in_a_row and not budget.spent:
        return Verdict(Action.VETO, reason, bad)
    often = f"{row} vetoes in a row" if row >= config.watchdog.vetoes_in_a_row else str(budget)
    return _climb(f"{reason}, after {often}", bad, report.step - row, given, config)


def _replay(faults: tuple[Alarm, ...], given: JudgeInput, config: RunConfig) -> Verdict:
    """It goes back to before a fault of memory; more of them mean a machine that should not go on."""
    reason, onset = _summary(faults), min(alarm.onset for alarm in faults)
    budget = rollback_budget(Remedy.REPLAY, given.history, config, given.attempt)
    if budget.spent:
        places = {one.step for one in given.history.rollbacks if one.remedy is Remedy.REPLAY}
        advice = SAME_PLACE if places == {given.report.step} else "test the hosts' memory"
        return _halt(f"{reason}; again a fault of memory, after {budget}: {advice}", faults, onset)
    return _unless_stuck(Verdict(Action.ROLLBACK, reason, faults, onset, Remedy.REPLAY), given)


def _climb(
    reason: str, alarms: tuple[Alarm, ...], onset: int, given: JudgeInput, config: RunConfig
) -> Verdict:
    """It takes the lowest rung that this trouble has not been tried on and that there is budget for; else the end."""
    tried = relapsed_from(given, config)
    if tried:
        reason += f", again after the rollback of step {tried[-1].step}"
    lowest = 1 + max((LADDER.index(rollback.remedy) for rollback in tried), default=-1)
    budgets = [rollback_budget(remedy, given.history, config, given.attempt) for remedy in LADDER[lowest:]]
    remedy = next((remedy for remedy, b in zip(LADDER[lowest:], budgets, strict=True) if not b.spent), None)
    if remedy is None:
        spent = "; ".join(map(str, budgets)) or "the deepest rollback has not helped"
        return _halt(f"{reason}; {spent}", alarms, onset)
    verdict = Verdict(Action.ROLLBACK, reason, alarms, onset, remedy)
    return _unless_stuck(_unless_skipped_out(verdict, WIDTH[remedy], given, config), given)


def relapsed_from(given: JudgeInput, config: RunConfig) -> tuple[Rollback, ...]:
    """It returns the rollbacks with a skip that have not cured this step's trouble.

    It counts as theirs within some horizons past the step that each turned back from, and at about the same step
    however much later: a step that fails with other samples fails because of the state.
    """
    reach = RELAPSE_HORIZONS * config.watchdog.horizon
    return tuple(
        rollback
        for rollback in given.history.rollbacks
        if rollback.remedy in LADDER
        and (
            given.attempt - rollback.attempt <= rollback.undone + reach
            or abs(given.report.step - rollback.step) <= config.watchdog.margin
        )
    )


def _unless_stuck(verdict: Verdict, given: JudgeInput) -> Verdict:
    """It ends the run instead, when the last recoveries have won no ground."""
    history = given.history
    if (
        verdict.action is Action.HALT
        or len(history.progress) < RECOVERIES_WITHOUT_PROGRESS
        or history.certified_step > history.progress[-RECOVERIES_WITHOUT_PROGRESS]
    ):
        return verdict
    stuck = f"{RECOVERIES_WITHOUT_PROGRESS} rollbacks without a certified step above {history.certified_step}"
    return _halt(f"{verdict.reason}; {stuck}", verdict.alarms, verdict.onset)


def _unless_skipped_out(verdict: Verdict, width: int, given: JudgeInput, config: RunConfig) -> Verdict:
    """It ends the run instead, when the rollback would leave out more samples than the run may."""
    around = width * (config.watchdog.margin + config.watchdog.skip_after)
    steps = given.report.step - verdict.onset + 1 + around
    budget = skip_budget(given.history, config)
    if steps * config.data.global_batch_size <= budget.left:
        return verdict
    more = f"{steps * config.data.global_batch_size:,} more would go"
    return _halt(f"{verdict.reason}; {budget}, and {more}", verdict.alarms, verdict.onset)


def _halt(reason: str, alarms: tuple[Alarm, ...], onset: int) -> Verdict:
    return Verdict(Action.HALT, reason, alarms, onset)


def _summary(alarms: tuple[Alarm, ...]) -> str:
    return "; ".join(map(str, alarms))
