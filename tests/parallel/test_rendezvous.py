"""Ranks, here in threads of one process, meet over a real store: all go on, or all leave for the same reason."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist
from support.distributed import free_port
from torch.distributed.distributed_c10d import PrefixStore

from parallel import rendezvous
from parallel.rendezvous import FAILURE, Facts, Place, Stopped, by_rank, meet
from parallel.world import WorldError

SECONDS = 60.0


class Meeting:
    """Its ranks are added one by one."""

    def __init__(self, size: int, pool: ThreadPoolExecutor) -> None:
        self.size, self.port, self.pool = size, free_port(), pool
        self.told: list[tuple[int, str]] = []
        """Rank and text of each report."""
        self.asked: set[int] = set()
        """These ranks are asked to stop."""

    def add(
        self, rank: int, facts: Facts | None = None, timeout: float = SECONDS, launch: str = ""
    ) -> "Future[object]":
        place = Place(rank, self.size, "127.0.0.1", self.port, launch=launch)
        return self.pool.submit(
            meet,
            place,
            facts or {},
            timedelta(seconds=timeout),
            lambda: rank in self.asked,
            lambda text: self.told.append((rank, text)),
        )

    def wait_until_told(self, rank: int, text: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not any(who == rank and text in told for who, told in self.told):
            assert time.monotonic() < deadline, self.told
            time.sleep(0.01)


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meeting]:
    """Three ranks are to come."""
    monkeypatch.setattr(rendezvous, "FIRST_REPORT", 0.01)
    with ThreadPoolExecutor(8) as pool:
        yield Meeting(3, pool)


def failure(rank: "Future[object]") -> BaseException | None:
    return rank.exception(SECONDS)


def test_ranks_that_are_alike_meet(meeting: Meeting) -> None:
    stores = [meeting.add(rank, {"lr": "1"}).result for rank in (2, 1, 0)]
    for store in stores:
        assert isinstance(store(SECONDS), dist.PrefixStore)


def test_ranks_that_differ_all_learn_in_what(meeting: Meeting) -> None:
    facts = ({"lr": "1", "b": "x"}, {"lr": "2", "b": "x"}, {"lr": "1", "c": "y"})
    for rank in [meeting.add(number, of) for number, of in enumerate(facts)]:
        error = failure(rank)
        assert isinstance(error, WorldError)
        assert error.differences == (
            "b: x on ranks 0, 1, none on rank 2",
            "c: none on ranks 0, 1, y on rank 2",
            "lr: 1 on ranks 0, 2, 2 on rank 1",
        )


def test_rank_0_may_leave_before_its_last_answer_is_out(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves as soon as it has counted all who have read why; seen on a busy machine."""
    add = PrefixStore.add

    def cut_off(self: PrefixStore, key: str, amount: int) -> int:
        found = add(self, key, amount)
        if (key, amount) == ("read", 1):
            raise dist.DistNetworkError("Connection reset by peer")
        return found

    monkeypatch.setattr(PrefixStore, "add", cut_off)
    for rank in [meeting.add(number, {"lr": str(number)}) for number in range(3)]:
        assert isinstance(failure(rank), WorldError)


@pytest.mark.parametrize("failed", [0, 1])
def test_a_rank_that_cannot_start_says_why(meeting: Meeting, failed: int) -> None:
    facts: list[Facts] = [{"lr": "1", "b": "2"}] * 3
    facts[failed] = {FAILURE: "no such file"}
    for rank in [meeting.add(number, of) for number, of in enumerate(facts)]:
        error = failure(rank)
        assert isinstance(error, WorldError)
        (told,) = error.differences
        assert f"no such file on rank {failed}" in told


def test_it_is_told_who_is_waited_for(meeting: Meeting) -> None:
    ranks = [meeting.add(1)]
    meeting.wait_until_told(
        1, f"waiting for ranks at 127.0.0.1:{meeting.port} (rank 0 does not answer: Connection ref"
    )
    ranks.append(meeting.add(0))
    meeting.wait_until_told(0, f"waiting for ranks at 127.0.0.1:{meeting.port} (have 2 of 3 after 0 s)")
    ranks.append(meeting.add(2))
    assert [failure(rank) for rank in ranks] == [None] * 3


@pytest.mark.parametrize("asked", [0, 1])
def test_a_rank_that_is_asked_to_stop_takes_the_others_with_it(meeting: Meeting, asked: int) -> None:
    ranks = [meeting.add(0), meeting.add(1)]
    meeting.wait_until_told(0, "have 2 of 3")
    meeting.asked.add(asked)
    for rank in ranks:
        assert isinstance(failure(rank), Stopped)
        assert f"rank {asked} was asked to stop" in str(failure(rank))


def test_a_rank_stops_while_nobody_answers(meeting: Meeting) -> None:
    rank = meeting.add(2)
    meeting.wait_until_told(2, "rank 0 does not answer")
    meeting.asked.add(2)
    assert isinstance(failure(rank), Stopped)


def test_who_has_met_stays(meeting: Meeting) -> None:
    """A request that comes late is dealt with by the run, so that nobody waits for a rank that has gone."""
    store = meeting.add(0), meeting.add(1), meeting.add(2)
    assert [failure(rank) for rank in store] == [None] * 3
    shared = store[0].result()
    assert isinstance(shared, dist.Store)
    assert shared.compare_set("outcome", "", "left") == b"met"


def test_time_runs_out(meeting: Meeting) -> None:
    with pytest.raises(dist.DistStoreError, match=f"127.0.0.1:{meeting.port}: have 1 of 3 after"):
        meeting.add(0, timeout=0.2).result(SECONDS)


def test_a_taken_port_is_named(meeting: Meeting) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", meeting.port))
        taken.listen()
        with pytest.raises(
            WorldError, match="cannot be listened at: address already in use; choose another port"
        ):
            meeting.add(0).result(SECONDS)


def test_two_runs_that_share_a_port_notice(meeting: Meeting) -> None:
    """A rank of the second run comes to the store of the first."""
    ranks = [meeting.add(0), meeting.add(1)]
    meeting.wait_until_told(0, "have 2 of 3")
    with pytest.raises(WorldError, match="another rank 1 is there already"):
        meeting.add(1).result(SECONDS)
    ranks.append(meeting.add(2))
    assert [failure(rank) for rank in ranks] == [None] * 3


def test_many_ranks_are_counted_rather_than_listed() -> None:
    assert by_rank(["a"] * 20 + ["b"]) == "a on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more, b on rank 20"


def test_ranks_of_launches_with_names_are_kept_apart(meeting: Meeting) -> None:
    """A stranger that comes first would leave no room for the rank that is waited for."""
    ranks = [meeting.add(0, launch="srun 1.0")]
    with pytest.raises(WorldError, match=r"another launch meet there \(srun 1.0; this one is srun 1.1\)"):
        meeting.add(1, launch="srun 1.1").result(SECONDS)
    ranks += [meeting.add(rank, launch="srun 1.0") for rank in (1, 2)]
    assert [failure(rank) for rank in ranks] == [None] * 3
