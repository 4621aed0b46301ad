"""The fold over a ledger: what each record changes, and that it says the same everywhere."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.ledger.history import VETO_WINDOW, LearningRateEdit, Rollback, RunHistory, fold
from pretrain.ledger.record import Kind, Record
from pretrain.step import Remedy

ROOT = Path(__file__).parents[3]


def record(kind: Kind, step: int = 10, attempt: int = 10, lineage: int = 1, **fields: object) -> Record:
    return Record(kind, step, attempt, lineage, fields)


def rollback(attempt: int = 500, target: int = 480, **changes: object) -> Rollback:
    plain = Rollback(
        attempt, attempt, Remedy.SKIP, 490, target, "step00000480-a3", ((1900, 2100),), 1.0, "why"
    )
    return replace(plain, **changes)


def edit(update: int, factor: float, returns: int = 100, held: int = 0) -> Record:
    fields = {"update": update, "factor": factor, "return_updates": returns, "until": update + held}
    return record(Kind.LEARNING_RATE_EDIT, **fields)


def veto(attempt: int) -> Record:
    return record(Kind.VETO, attempt=attempt, reason="", draws=[0, 8])


DONE = record(Kind.ROLLBACK_DONE, step=480, attempt=500, lineage=2, seconds=1.0, tier="disk", proof="")


def test_lineage_and_attempt_never_go_back() -> None:
    state = fold([record(Kind.SUSPECT, attempt=90, lineage=3), record(Kind.RESUMED, attempt=50, lineage=2)])
    assert (state.lineage, state.attempt) == (3, 90)


def test_an_intent_counts_before_it_is_done() -> None:
    state = fold([rollback().intent(1)])
    assert state.pending == rollback()
    assert state.rollbacks == (rollback(),)
    assert state.skips == ((1900, 2100),)
    assert state.skipped_samples == 200
    assert (state.lineage, state.attempt, state.certified_step) == (1, 500, 480)
    done = state.after(DONE)
    assert done == replace(state, pending=None, lineage=2)


def test_an_intent_planned_again_is_the_same_rollback() -> None:
    again = rollback(target=400, target_tag="step00000400-a2")
    state = fold([rollback().intent(1), again.intent(1), DONE])
    assert state.rollbacks == (again,)
    assert len(state.progress) == 1
    assert state.skipped_samples == 200


def test_the_next_intent_is_another_rollback() -> None:
    other = rollback(attempt=600, skip=((2050, 2300),))
    state = fold([rollback().intent(1), DONE, other.intent(2)])
    assert state.rollbacks == (rollback(), other)
    assert state.skips == ((1900, 2300),)
    assert state.skipped_samples == 400


@given(st.builds(rollback, remedy=st.sampled_from(Remedy), skip=st.just(()), target_tag=st.none()))
def test_an_intent_and_its_record_are_inverse(one: Rollback) -> None:
    assert Rollback.of(one.intent(7)) == one


def test_rollbacks_are_counted_by_remedy_and_attempt() -> None:
    intents = [(500, Remedy.SKIP), (700, Remedy.REPLAY), (900, Remedy.SKIP)]
    records = [r for a, remedy in intents for r in (rollback(attempt=a, remedy=remedy).intent(1), DONE)]
    state = fold(records)
    assert [state.count(Remedy.SKIP, since=since) for since in (0, 499, 500, 900)] == [2, 2, 1, 0]
    assert state.count(Remedy.REPLAY) == 1
    assert state.count(Remedy.DEEPER) == 0


def test_vetoes_are_remembered_for_a_window_and_count_once() -> None:
    state = fold([veto(5), veto(6), veto(6), veto(4 + VETO_WINDOW)])
    assert state.vetoes == (5, 6, 4 + VETO_WINDOW)
    assert [state.vetoes_after(attempt) for attempt in (4, 5, 6, 4 + VETO_WINDOW)] == [3, 2, 1, 0]
    assert state.after(veto(6 + VETO_WINDOW)).vetoes == (4 + VETO_WINDOW, 6 + VETO_WINDOW)


def test_a_rollback_begins_the_count_of_vetoes_anew() -> None:
    state = fold([veto(100), veto(490), rollback().intent(1), DONE, veto(510)])
    assert state.vetoes == (510,)


def test_health_of_checkpoints() -> None:
    first, second = "step00000100-a1", "step00000200-a2"
    state = fold([record(Kind.CERTIFIED, tag=tag, horizon=8) for tag in (first, second)])
    assert (state.certified, state.certified_step) == ({first, second}, 200)
    condemned = state.after(record(Kind.CONDEMNED, tag=second, reason="alarm"))
    assert (condemned.certified, condemned.condemned) == ({first}, {second})
    assert condemned.certified_step == 200, "progress is not taken back"
    assert condemned.after(record(Kind.QUARANTINED, tag=first, reason="bits")).certified == frozenset()


def test_a_candidate_in_memory_counts_as_progress() -> None:
    state = fold([record(Kind.CERTIFIED, step=300, tag=None, horizon=128)])
    assert (state.certified, state.certified_step) == (frozenset(), 172)


def test_the_end_and_a_new_beginning() -> None:
    ended = fold([record(Kind.DONE)])
    assert ended.finished
    assert not ended.after(record(Kind.RESUMED, tag="step00000100-a1")).finished
    assert not ended.after(record(Kind.RUN_START)).finished
    assert not fold([record(Kind.PREEMPTED), record(Kind.STOPPED, code=5, reason="")]).finished


@pytest.mark.parametrize(
    ("update", "factor"),
    [(0, 1.0), (99, 1.0), (100, 0.5), (150, 0.75), (199, 0.995), (200, 1.0), (10**9, 1.0)],
)
def test_a_lowered_learning_rate_returns_linearly(update: int, factor: float) -> None:
    assert fold([edit(100, 0.5)]).learning_rate_factor(update) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(("update", "factor"), [(99, 1.0), (100, 0.5), (129, 0.5), (180, 0.75), (230, 1.0)])
def test_it_does_not_return_before_the_trouble_is_passed(update: int, factor: float) -> None:
    assert fold([edit(100, 0.5, held=30)]).learning_rate_factor(update) == pytest.approx(factor, abs=1e-15)


def test_edits_multiply() -> None:
    state = fold([edit(100, 0.5), edit(150, 0.5)])
    assert state.learning_rate_factor(150) == 0.75 * 0.5
    assert RunHistory().learning_rate_factor(3) == 1.0


def test_an_edit_replaces_what_it_has_undone() -> None:
    twice = fold([edit(100, 0.5), edit(100, 0.5)])
    assert twice.learning_rate_factor(100) == 0.5, "written again after a crash"
    deeper = fold([edit(100, 0.5), edit(60, 0.25)])
    assert deeper.learning_rate_edits == (LearningRateEdit(60, 0.25, 100, 60),)


def test_digest_tells_states_apart() -> None:
    states = [
        RunHistory(),
        fold([veto(5)]),
        fold([rollback().intent(1)]),
        fold([rollback().intent(1), DONE]),
        fold([edit(1, 0.5)]),
        fold([record(Kind.CERTIFIED, tag="step00000100-a1", horizon=8)]),
    ]
    assert len({state.digest for state in states}) == len(states)
    assert all(0 <= state.digest < 2**52 for state in states)


DIGEST = """
import sys
from pretrain.ledger.record import Kind, Record
from pretrain.ledger.history import fold
tags = [f"step{100 * n:08d}-a{n}" for n in range(1, 20)]
print(fold([Record(Kind.CERTIFIED, 1, 1, 1, {"tag": tag, "horizon": 8}) for tag in tags]).digest)
print([name for name in ("torch", "numpy", "deepspeed") if name in sys.modules])
"""


def test_digest_is_equal_in_other_processes_and_needs_no_torch() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().splitlines()[1] == "[]"
