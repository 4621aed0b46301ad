"""Whether a step of Slurm has begun is read from what Slurm shows, and asked for now and then."""

import pytest

from launch.slurm_queue import SECONDS_BETWEEN, Queue, has_begun, in_queue

STEPS = (
    "StepId=1.0 UserId=0 StartTime=2026-11-28T16:03:44 State=RUNNING Name=sleep SrunHost:Pid=login.cluster:9914\n"
    "StepId=2.0 UserId=0 StartTime=2026-11-28T16:03:56 State=RUNNING Name=sleep SrunHost:Pid=login:99401\n"
    "StepId=2.TBD UserId=0 StartTime=Unknown State=PENDING Name=sleep SrunHost:Pid=login:744\n"
)


@pytest.mark.parametrize(
    ("host", "pid", "begun"),
    [
        ("login", 9914, True),
        ("login.cluster", 99401, True),
        ("login", 9940, False),
        ("other", 9914, False),
        ("login", 744, False),  # other steps of its job have all processors
    ],
)
def test_a_step_is_that_of_the_srun_that_started_it(host: str, pid: int, begun: bool) -> None:
    assert has_begun(STEPS, host, pid) is begun
    assert not has_begun("No job steps in the system\n", host, pid)


def test_without_an_answer_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not in_queue(1)


def test_waiting_is_told_once_and_asked_for_now_and_then() -> None:
    now, told, asked = [0.0], list[str](), list[int]()
    answers = [True, True, False]

    def ask(pid: int) -> bool:
        asked.append(pid)
        return answers[len(asked) - 1]

    queue = Queue(7, told.append, lambda: now[0], ask)
    waits = []
    for _ in range(10):
        waits += [queue.waits()]
        now[0] += SECONDS_BETWEEN / 2
    assert waits == [True] * 6 + [False] * 4
    assert asked == [7, 7, 7]
    assert told == ["in the queue of Slurm"]
