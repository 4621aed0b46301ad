"""The policy: which findings lead to which verdict, and that the ladder has an end."""

import json
from dataclasses import replace
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.watchdog_run import BATCH, HEALTHY, Run, findings, make_config

from pretrain.ledger.history import Rollback, RunHistory, fold
from pretrain.step import Action, Remedy, StepReport, TrainState, Verdict
from pretrain.watchdog.budgets import budgets
from pretrain.watchdog.loss_trend import LossTrend
from pretrain.watchdog.policy import JudgeInput, in_dry_run, judge
from pretrain.watchdog.recent_alarms import PAIR_WINDOW, RecentAlarms, family
from pretrain.watchdog.rollback_plan import plan_rollback

CONFIG = make_config()


def judge_input(event: str, step: int = 500, history: RunHistory | None = None, **state: int) -> JudgeInput:
    """Of a step with this event in a run that was healthy before."""
    alarms, suspects = findings(event, step)
    report = StepReport(step, 2.0, 1.0, 1e-3, BATCH, 32 * BATCH, finite="nonfinite" not in event)
    before = TrainState(step=step - 1, updates=step - 1, attempt=step - 1, **state)
    return JudgeInput(
        alarms,
        suspects,
        RecentAlarms().after(step, alarms, suspects),
        report,
        before,
        history or RunHistory(),
    )


@pytest.mark.parametrize(
    ("event", "action", "remedy"),
    [
        (HEALTHY, Action.PROCEED, None),
        ("nonfinite", Action.VETO, None),
        ("cap", Action.VETO, None),
        ("reach", Action.ROLLBACK, Remedy.REPLAY),
        ("replicas", Action.ROLLBACK, Remedy.REPLAY),
        ("reach nonfinite loss", Action.ROLLBACK, Remedy.REPLAY),
        ("loss", Action.ROLLBACK, Remedy.SKIP),
        ("loss nonfinite", Action.ROLLBACK, Remedy.SKIP),
        ("loss?", Action.PROCEED, None),
        ("tev_mean", Action.PROCEED, None),
        ("tev_mean tev_max tev_std", Action.PROCEED, None),
        ("tev_mean tev_max?", Action.PROCEED, None),
        ("tev_mean!", Action.PROCEED, None),
        ("tev_shift!", Action.PROCEED, None),
        ("tev_shift! loss?", Action.ROLLBACK, Remedy.SKIP),
        ("tev_mean gradient_norm", Action.ROLLBACK, Remedy.SKIP),
        ("tev_mean gradient_norm?", Action.ROLLBACK, Remedy.SKIP),
        ("tev_mean? gradient_norm", Action.PROCEED, None),
        ("gradient_norm", Action.PROCEED, None),
        ("gradient_norm!", Action.PROCEED, None),
        ("gradient_norm loss?", Action.PROCEED, None),
        ("gradient_norm gradient_variance", Action.ROLLBACK, Remedy.SKIP),
        ("attention_entropy_min attention_entropy_mean", Action.PROCEED, None),
        ("attention_entropy_min update_rms", Action.ROLLBACK, Remedy.SKIP),
        ("update_rms update_rms_max update_rms/layer_03", Action.PROCEED, None),
    ],
)
def test_what_findings_lead_to(event: str, action: Action, remedy: Remedy | None) -> None:
    verdict = judge(judge_input(event), CONFIG)
    assert (verdict.action, verdict.remedy) == (action, remedy)
    assert bool(verdict.reason) == (action is not Action.PROCEED)


def test_a_report_that_is_not_finite_needs_no_alarm() -> None:
    seen = replace(judge_input(HEALTHY), report=replace(judge_input(HEALTHY).report, finite=False))
    assert judge(seen, CONFIG).action is Action.VETO


@pytest.mark.parametrize(
    ("first", "second", "action"),
    [
        ("tev_mean", "attention_entropy_min?", Action.ROLLBACK),
        ("attention_entropy_min?", "tev_mean", Action.ROLLBACK),
        ("update_rms", "gradient_norm", Action.ROLLBACK),
        ("update_rms?", "gradient_norm", Action.PROCEED),
        ("update_rms", HEALTHY, Action.PROCEED),
        ("tev_mean", "tev_max", Action.PROCEED),
    ],
)
@pytest.mark.parametrize("steps", [1, PAIR_WINDOW - 1, PAIR_WINDOW])
def test_two_signals_count_together_within_the_window(
    first: str, second: str, action: Action, steps: int
) -> None:
    memory = RecentAlarms().after(500 - steps, *findings(first, 500 - steps))
    for step in range(500 - steps + 1, 500):
        memory = memory.after(step, (), ())
    seen = judge_input(second)
    verdict = judge(replace(seen, recent=memory.after(500, seen.alarms, seen.suspects)), CONFIG)
    assert verdict.action is (action if steps < PAIR_WINDOW else Action.PROCEED)
    if verdict.action is Action.ROLLBACK:
        assert verdict.onset == 500 - steps - 1, "the trouble began with the first of the two"
        assert len(verdict.alarms) == 2


def test_memory_of_alarms_survives_a_checkpoint() -> None:
    memory = RecentAlarms().after(7, *findings("tev_mean loss? update_rms", 7))
    assert RecentAlarms.from_state_dict(json.loads(json.dumps(memory.state_dict()))) == memory


def test_memory_of_alarms_stays_small() -> None:
    memory = RecentAlarms()
    for step in range(1, 1000):
        memory = memory.after(step, *findings("tev_mean tev_max loss tev_mean? gradient_norm?", step))
    assert len(memory.sightings) == 4
    for step in range(1000, 1000 + PAIR_WINDOW):
        memory = memory.after(step, (), ())
    assert memory == RecentAlarms()


@pytest.mark.parametrize(
    ("signal", "name"),
    [("tev_mean_rate", "tev"), ("update_rms/layer_03", "update_rms"), ("loss", "loss"), ("lossy", "lossy")],
)
def test_families(signal: str, name: str) -> None:
    assert family(signal) == name


# Vetoes


def test_vetoes_in_a_row_end_in_a_rollback_to_before_the_first() -> None:
    run = Run(CONFIG)
    run.steps([HEALTHY] * 40 + ["nonfinite"] * 4)
    assert [verdict.action for verdict in run.verdicts[-4:]] == [Action.VETO] * 3 + [Action.ROLLBACK]
    assert run.verdicts[-1].onset == 41
    assert "after 3 vetoes in a row" in run.verdicts[-1].reason
    assert run.history.rollbacks[0].target_step <= 41 - CONFIG.watchdog.margin


def test_vetoes_far_apart_have_a_budget_too() -> None:
    run = Run(CONFIG)
    run.steps(["nonfinite", *[HEALTHY] * 9] * 11)
    assert [verdict.action for verdict in run.verdicts].count(Action.VETO) == 10
    assert run.verdicts[100].action is Action.ROLLBACK
    assert "10 of 10 vetoes in 1,000 steps (watchdog.veto_fraction)" in run.verdicts[100].reason


def test_old_vetoes_are_forgiven() -> None:
    run = Run(CONFIG)
    run.steps(["nonfinite", *[HEALTHY] * 99] * 15)
    assert run.rollbacks() == []


# The ladder


def test_trouble_that_comes_back_climbs_the_ladder_to_its_end() -> None:
    run = Run(CONFIG)
    run.steps([HEALTHY] * 200)
    run.steps(repeat("loss", 20))
    assert run.rollbacks() == ["skip", "deeper", "deepest"]
    assert run.verdicts[-1].action is Action.HALT
    assert [edit.factor for edit in run.history.learning_rate_edits] == [0.25], (
        "the last one replaces the first"
    )
    targets = [rollback.target_step for rollback in run.history.rollbacks]
    assert targets[0] > targets[1] > targets[2] == 0


def test_what_nothing_helps_against_ends_a_run_only_with_its_loss() -> None:
    run = Run(CONFIG)
    run.steps([HEALTHY] * 200)
    run.steps(repeat("tev_mean gradient_norm", 20))
    assert run.rollbacks() == ["skip", "deeper", "deepest"]
    assert run.verdicts[-1].action is Action.PROCEED
    assert "the loss has not moved" in run.verdicts[-1].reason
    assert run.step("tev_mean gradient_norm nonfinite").action is Action.VETO
    assert run.step("tev_mean gradient_norm loss").action is Action.HALT


def test_a_run_that_gets_better_is_not_taken_back_for_other_signals() -> None:
    falling = LossTrend.of((step, 5 - 0.01 * step) for step in range(373, 501))
    for event, action in (("tev_mean gradient_norm", Action.PROCEED), ("loss", Action.ROLLBACK)):
        verdict = judge(replace(judge_input(event), trend=falling), CONFIG)
        assert verdict.action is action
        assert ("the loss still falls" in verdict.reason) is (action is Action.PROCEED)


def test_trouble_that_follows_within_four_horizons_of_the_place_is_the_old_one() -> None:
    reach = 4 * CONFIG.watchdog.horizon
    for past, remedy in ((reach, "deeper"), (reach + 1, "skip")):
        run = Run(CONFIG)
        run.steps([*[HEALTHY] * 199, "loss"])
        assert run.history.rollbacks[0].step == 200
        run.steps([HEALTHY] * (200 - run.state.step + past - 1) + ["loss"])
        assert run.history.rollbacks[1].step == 200 + past
        assert run.rollbacks() == ["skip", remedy]


def test_the_same_step_again_is_the_state_and_not_the_samples() -> None:
    far = 100_000
    earlier = Rollback(500, 500, Remedy.SKIP, 499, 480, None, ((0, 8),), 1.0, "")
    history = fold([earlier.intent(1)])
    for step, remedy in ((502, Remedy.DEEPER), (498, Remedy.DEEPER), (503, Remedy.SKIP), (497, Remedy.SKIP)):
        seen = judge_input("loss", step, history)
        seen = replace(seen, state=replace(seen.state, attempt=far))
        assert judge(seen, make_config(rollbacks=9)).remedy is remedy


def test_after_a_replay_samples_are_skipped_first() -> None:
    run = Run(CONFIG)
    run.steps([*[HEALTHY] * 99, "reach", *[HEALTHY] * 5, "loss"])
    assert run.rollbacks() == ["replay", "skip"]
    assert run.history.rollbacks[0].skip == ()


def test_a_spent_budget_sends_one_rung_up() -> None:
    run = Run(make_config(rollbacks=2))
    run.steps([*[HEALTHY] * 150, "loss"] * 3)
    assert run.rollbacks() == ["skip", "skip", "deeper"]


def test_rollbacks_are_forgiven_after_ten_thousand_steps() -> None:
    earlier = Rollback(500, 500, Remedy.SKIP, 499, 480, None, ((0, 8),), 1.0, "")
    history = fold([earlier.intent(1)])
    for attempt, remedy in ((10_499, Remedy.DEEPER), (10_500, Remedy.SKIP)):
        seen = judge_input("loss", 5000, history)
        seen = replace(seen, state=replace(seen.state, attempt=attempt - 1))
        assert judge(seen, make_config(rollbacks=1)).remedy is remedy


def test_faults_of_memory_have_a_budget() -> None:
    run = Run(CONFIG)
    run.steps([*[HEALTHY] * 150, "replicas"] * 3)
    assert run.rollbacks() == ["replay", "replay"]
    assert run.verdicts[-1].action is Action.HALT
    assert "watchdog.replays" in run.verdicts[-1].reason
    assert run.verdicts[-1].reason.endswith("test the hosts' memory")


def test_a_fault_that_a_replay_brings_back_at_its_very_step_is_not_put_down_to_memory() -> None:
    run = Run(CONFIG)
    run.steps([HEALTHY] * 103)
    while not run.ended:
        run.step("reach" if run.state.step == 103 else HEALTHY)
    assert run.rollbacks() == ["replay", "replay"]
    assert "test the hosts" not in run.verdicts[-1].reason
    assert "each time at this step" in run.verdicts[-1].reason


def test_three_recoveries_without_ground_are_the_end() -> None:
    run = Run(make_config(replays=9))
    run.steps([HEALTHY] * 100)
    run.steps(["reach"] * 4)
    assert run.rollbacks() == ["replay"] * 3
    assert run.verdicts[-1].action is Action.HALT
    assert "3 rollbacks without a certified step above 90" in run.verdicts[-1].reason


def test_ground_that_was_won_counts() -> None:
    run = Run(make_config(replays=9))
    run.steps([*[HEALTHY] * 100, *["reach", *[HEALTHY] * 40] * 8])
    assert run.rollbacks() == ["replay"] * 8


def test_samples_that_may_be_skipped_are_limited_before_they_are_skipped() -> None:
    total = 2000 * BATCH
    window = 2 + CONFIG.watchdog.margin + CONFIG.watchdog.skip_after
    before = RunHistory(skips=((0, 100 * BATCH),))
    enough = make_config(skipped_fraction=((window + 100) * BATCH + 0.5) / total)
    short = make_config(skipped_fraction=((window + 100) * BATCH - 0.5) / total)
    assert judge(judge_input("loss", history=before), enough).action is Action.ROLLBACK
    verdict = judge(judge_input("loss", history=before), short)
    assert verdict.action is Action.HALT
    assert "watchdog.skipped_fraction" in verdict.reason
    assert judge(judge_input("reach", history=before), short).action is Action.ROLLBACK, (
        "a replay skips nothing"
    )


def test_a_short_run_has_room_for_one_rollback() -> None:
    short = make_config(skipped_fraction=1e-9)
    assert judge(judge_input("loss"), short).action is Action.ROLLBACK
    assert (
        judge(judge_input("loss", history=RunHistory(skips=((0, 40 * BATCH),))), short).action is Action.HALT
    )


# Plans

DRAWS = {step: (BATCH * (step - 1), BATCH * step) for step in range(1, 501)}


def test_a_plan_goes_back_before_the_onset_and_skips_around_it() -> None:
    seen = judge_input("loss")
    verdict = replace(judge(seen, CONFIG), onset=490)
    plan = plan_rollback(verdict, seen, DRAWS, CONFIG)
    assert (plan.limit_step, plan.oldest) == (488, False)
    assert plan.draft.skip == ((DRAWS[488][0], DRAWS[500][1] + 4 * BATCH),)
    assert (plan.draft.step, plan.draft.attempt, plan.draft.onset) == (500, 500, 490)
    rollback = plan.to(480, "step00000480-a3")
    assert (rollback.target_step, rollback.target_tag, rollback.undone) == (480, "step00000480-a3", 20)


@pytest.mark.parametrize(
    ("remedy", "limit", "oldest", "first", "after", "factor"),
    [
        (Remedy.SKIP, 488, False, 488, 4, 1.0),
        (Remedy.DEEPER, 459, False, 486, 8, 0.5),
        (Remedy.DEEPEST, 459, True, 482, 16, 0.25),
    ],
)
def test_deeper_plans(
    remedy: Remedy, limit: int, oldest: bool, first: int, after: int, factor: float
) -> None:
    earlier = Rollback(480, 480, Remedy.SKIP, 479, 460, None, ((0, 8),), 1.0, "")
    seen = judge_input("loss", history=fold([earlier.intent(1)]))
    verdict = Verdict(Action.ROLLBACK, "why", onset=490, remedy=remedy)
    plan = plan_rollback(verdict, seen, DRAWS, CONFIG)
    assert (plan.limit_step, plan.oldest, plan.draft.learning_rate_factor) == (limit, oldest, factor)
    assert plan.draft.skip == ((DRAWS[first][0], DRAWS[500][1] + after * BATCH),)


def test_a_plan_is_clipped_to_what_is_remembered() -> None:
    verdict = Verdict(Action.ROLLBACK, "why", onset=1, remedy=Remedy.SKIP)
    remembered = {step: draws for step, draws in DRAWS.items() if step > 400}
    plan = plan_rollback(verdict, judge_input("loss"), remembered, CONFIG)
    assert plan.draft.skip[0][0] == DRAWS[401][0]
    assert plan.limit_step == 0


def test_a_replay_skips_nothing() -> None:
    verdict = Verdict(Action.ROLLBACK, "why", onset=500, remedy=Remedy.REPLAY)
    plan = plan_rollback(verdict, judge_input("reach"), DRAWS, CONFIG)
    assert (plan.limit_step, plan.draft.skip, plan.draft.learning_rate_factor) == (498, (), 1.0)


# Dry run


@pytest.mark.parametrize(
    ("event", "vetoes", "action"),
    [
        (HEALTHY, 0, Action.PROCEED),
        ("loss", 0, Action.PROCEED),
        ("reach", 0, Action.PROCEED),
        ("cap", 0, Action.PROCEED),
        ("nonfinite", 0, Action.VETO),
        ("nonfinite", 3, Action.VETO),
        ("nonfinite", 50, Action.HALT),
    ],
)
def test_a_dry_run_only_withholds_what_is_not_finite(event: str, vetoes: int, action: Action) -> None:
    seen = judge_input(event, vetoes_in_a_row=vetoes)
    verdict = judge(seen, CONFIG)
    done = in_dry_run(verdict, seen)
    assert done.action is action
    if action is Action.PROCEED and event:
        assert done.reason.startswith("dry run, no ")
        assert verdict.reason in done.reason
        assert done.alarms == verdict.alarms
    assert done.remedy is None


# Properties

EVENTS = st.sampled_from(
    [
        *[HEALTHY] * 6,
        "nonfinite",
        "cap",
        "loss",
        "tev_mean",
        "tev_mean!",
        "gradient_norm?",
        "update_rms",
        "reach",
        "loss nonfinite",
        "tev_mean attention_entropy_min",
    ]
)
STRETCHES = st.lists(st.tuples(EVENTS, st.integers(1, 60)), max_size=25)
STORMS = st.sampled_from(
    [
        "loss",
        "nonfinite",
        "cap",
        "reach",
        "tev_mean loss?",
        "update_rms gradient_norm",
        "nonfinite reach loss",
    ]
)
LIMITS = st.builds(
    make_config,
    rollbacks=st.integers(0, 4),
    replays=st.integers(0, 3),
    deeper=st.integers(0, 3),
    deepest=st.integers(0, 2),
    vetoes_in_a_row=st.integers(1, 5),
    veto_fraction=st.sampled_from([0.001, 0.01, 0.1]),
    skipped_fraction=st.sampled_from([0.001, 0.02, 0.2, 1.0]),
    margin=st.integers(0, 20),
)


def unfold(stretches: list[tuple[str, int]]) -> list[str]:
    return [event for event, count in stretches for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(LIMITS, STRETCHES)
def test_no_budget_is_ever_exceeded(config: object, stretches: list[tuple[str, int]]) -> None:
    run = Run(config)
    for event in unfold(stretches):
        if run.ended:
            break
        run.step(event)
        for budget in budgets(run.history, run.config, run.state.attempt):
            assert budget.used <= budget.allowed, budget
        assert run.state.vetoes_in_a_row <= run.config.watchdog.vetoes_in_a_row


@settings(max_examples=40, deadline=None)
@given(LIMITS, STRETCHES, STORMS)
def test_an_endless_storm_ends_or_is_lived_with(
    config: object, stretches: list[tuple[str, int]], storm: str
) -> None:
    run = Run(config)
    run.steps(unfold(stretches))
    run.steps(repeat(storm, 500))
    if {"loss", "nonfinite", "cap", "reach"} & set(storm.split()):
        assert run.ended
        assert run.verdicts[-1].action is Action.HALT
    elif not run.ended:  # by what came before the storm
        assert "the loss has not moved" in run.verdicts[-1].reason


@settings(max_examples=20, deadline=None)
@given(LIMITS, STRETCHES)
def test_verdicts_are_deterministic(config: object, stretches: list[tuple[str, int]]) -> None:
    one, other = Run(config), Run(config)
    one.steps(unfold(stretches))
    other.steps(unfold(stretches))
    assert one.verdicts == other.verdicts
    assert one.records == other.records
    assert one.history.digest == other.history.digest


@settings(max_examples=20, deadline=None)
@given(LIMITS, STRETCHES)
def test_every_prefix_of_the_records_is_a_consistent_state(
    config: object, stretches: list[tuple[str, int]]
) -> None:
    run = Run(config)
    run.steps(unfold(stretches))
    state = RunHistory()
    for record in run.records:
        later = state.after(record)
        assert later.lineage >= state.lineage
        assert later.attempt >= state.attempt
        assert later.certified_step >= state.certified_step
        assert later.skipped_samples >= state.skipped_samples
        assert len(later.rollbacks) - len(state.rollbacks) == (record.kind == "rollback_intent")
        assert (later.pending is not None) == (record.kind in ("rollback_intent", "learning_rate_edit"))
        for budget in budgets(later, run.config, later.attempt):
            assert budget.used <= budget.allowed, budget
        state = later
    assert state == run.history == fold(run.records)
