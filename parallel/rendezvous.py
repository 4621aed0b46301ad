"""Ranks meet: they wait for each other at the address of rank 0, and see whether they were started alike.

A rank that is asked to stop meanwhile takes all with it at once; whether they have met or have left is decided once,
in the store, so that none of them waits for one that has gone. Nothing here depends on the backend.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from parallel.world import WorldError

Facts = Mapping[str, str]
"""What must be equal on all ranks, by name."""

FIRST_REPORT = 10.0
"""After so many seconds it is told who is waited for, and again each time that has doubled."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
ANSWER_SECONDS = 2.0
"""A host has so long to answer."""
READING_SECONDS = 15.0
"""Ranks have so long to read why they leave: those that start together on a host keep it busy."""
NAMED = 8
"""So many ranks are named one by one."""
MET, LEFT = "met", "left"
NONE, UNNAMED = "none", "without a name"
FAILURE = "failure"
"""It is the only fact about a rank that cannot start."""


class Stopped(Exception):
    """A rank was asked to stop before all had met."""


@dataclass(frozen=True)
class Place:
    """It says where ranks meet, and which of them this one is."""

    rank: int
    size: int
    address: str
    port: int
    hosted: bool = False
    """The store is there already, as under torchrun, and outlives ranks."""
    launch: str = ""
    """It tells this launch from others at the same address, and in a hosted store from those before it."""

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def meet(
    place: Place,
    facts: Facts,
    timeout: timedelta,
    asked_to_stop: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = lambda text: None,
) -> Store:
    """It waits until all ranks are there, and returns their store; `report` says whom it waits for.

    Raises:
        WorldError: the ranks were started differently, or another program or run uses the address.
        Stopped: a rank was asked to stop.
        DistStoreError: ranks are missing when time is up.
    """
    return _Meeting(place, timeout, asked_to_stop, report).hold(facts)


class _Meeting:
    """It is a meeting as one of the ranks sees it."""

    def __init__(
        self,
        place: Place,
        timeout: timedelta,
        asked_to_stop: Callable[[], bool],
        report: Callable[[str], None],
    ) -> None:
        self._place, self._timeout = place, timeout
        self._asked_to_stop, self._report = asked_to_stop, report
        self._started = time.monotonic()
        self._next_report = FIRST_REPORT

    def hold(self, facts: Facts) -> Store:
        store = PrefixStore(f"meeting {self._place.launch}", self._own(self._store()))
        self._come(store, facts)
        outcome = self._outcome(store)
        if outcome == MET:
            store.set_timeout(self._timeout)
            return store
        with suppress(dist.DistError):  # rank 0 may have counted this one and left before its answer was out
            store.add("read", 1)
        if self._place.rank == 0:  # with it goes the store
            deadline = time.monotonic() + READING_SECONDS
            while store.add("read", 0) < store.add("there", 0) and time.monotonic() < deadline:
                time.sleep(SHORTEST_PAUSE)
        if outcome.startswith(LEFT):
            raise Stopped(outcome)
        raise WorldError(
            "the ranks were not started alike; give all of them the same configuration, options and installation",
            tuple(json.loads(outcome)),
        )

    def _store(self) -> Store:
        """It opens the store on rank 0, and connects to it as soon as it answers on the others."""
        place, soon = self._place, timedelta(seconds=ANSWER_SECONDS)
        if place.rank == 0 and not place.hosted:
            try:
                return TCPStore(place.address, place.port, None, True, soon, wait_for_workers=False)
            except dist.DistNetworkError as error:
                remedy = "raise `ulimit -n`" if "Too many open files" in str(error) else "choose another port"
                raise WorldError(f"{place}: cannot be listened at: {_reason(error)}; {remedy}") from None
        for _ in self._pauses(lambda: f"rank 0 does not answer: {_why_no_answer(place)}"):
            if _why_no_answer(place) is None:
                break
        try:
            return TCPStore(place.address, place.port, None, False, soon, wait_for_workers=False)
        except dist.DistNetworkError as error:
            raise WorldError(f"{place}: something else than rank 0 answers there: {_reason(error)}") from None

    def _own(self, store: Store) -> Store:
        """It returns the store if ranks of this launch meet in it; one that is hosted has room for several launches."""
        ours = self._place.launch
        if self._place.hosted:
            return store
        if self._place.rank == 0:
            store.set("launch", ours)
        for _ in self._pauses(lambda: "rank 0 is missing"):
            if store.check(["launch"]):
                break
        if (theirs := store.get("launch").decode()) != ours:
            raise WorldError(
                f"{self._place}: ranks of another launch meet there ({theirs or UNNAMED}; this one is "
                f"{ours or UNNAMED}); give each a MASTER_PORT of its own"
            )
        return store

    def _come(self, store: Store, facts: Facts) -> None:
        """It leaves word that this rank is there, and in what it differs from rank 0."""
        place, token = self._place, uuid4().hex
        if store.compare_set(f"rank{place.rank}", "", token).decode() != token:
            raise WorldError(
                f"{place}: another rank {place.rank} is there already; two runs must not share a port: "
                "give each a MASTER_PORT of its own"
            )
        if place.rank == 0:
            store.set("facts", json.dumps(dict(facts)))
        for _ in self._pauses(lambda: "rank 0 is missing", store):
            if store.check(["facts"]) or store.check(["outcome"]):
                break
        if store.check(["facts"]):
            store.set(f"differs{place.rank}", json.dumps(_differences(json.loads(store.get("facts")), facts)))
        store.add("there", 1)

    def _outcome(self, store: Store) -> str:
        """It returns what has become of the meeting, which rank 0 decides unless somebody has left."""
        size = self._place.size
        for _ in self._pauses(lambda: f"have {store.add('there', 0)} of {size}", store):
            if store.check(["outcome"]):
                return store.get("outcome").decode()
            if self._place.rank == 0 and store.add("there", 0) >= size:
                keys = [f"differs{rank}" for rank in range(size)]
                found = {rank: json.loads(text) for rank, text in enumerate(store.multi_get(keys))}
                lines = _in_words(json.loads(store.get("facts")), found)
                return store.compare_set("outcome", "", json.dumps(lines) if lines else MET).decode()
        raise AssertionError("pauses end by an exception")

    def _pauses(self, missing: Callable[[], str], store: Store | None = None) -> Iterator[None]:
        """It yields again and again, a pause before each time but the first.

        It tells what is missing now and then, ends by an exception when time is up, and sees to requests to stop.
        """
        pause = SHORTEST_PAUSE
        while True:
            yield
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if self._asked_to_stop():
                self._leave(store)
            waited = time.monotonic() - self._started
            if waited > self._timeout.total_seconds():
                raise dist.DistStoreError(f"{self._place}: {missing()} after {waited:.0f} s")
            if waited > self._next_report:
                self._report(f"waiting for ranks at {self._place} ({missing()} after {waited:.0f} s)")
                self._next_report *= 2

    def _leave(self, store: Store | None) -> None:
        """It has all ranks leave, unless they have met: then whatever comes next deals with the request."""
        reason = f"{LEFT}: rank {self._place.rank} was asked to stop before all had met"
        if store is None:
            raise Stopped(reason)
        store.compare_set("outcome", "", reason)


def _why_no_answer(place: Place) -> str | None:
    """It returns why nobody answers there; None if somebody does.

    torch's own attempts to connect cannot be interrupted, and fill the screen.
    """
    try:
        socket.create_connection((place.address, place.port), ANSWER_SECONDS).close()
        return None
    except OSError as error:
        return error.strerror or str(error)


def _differences(first: Facts, ours: Facts) -> dict[str, str]:
    """It returns our values of the facts that differ from those of rank 0; a rank that failed has no others."""
    if first.keys() != ours.keys() and FAILURE in {*first, *ours}:
        return {FAILURE: ours.get(FAILURE, NONE)}
    return {name: ours.get(name, NONE) for name in {*first, *ours} if ours.get(name) != first.get(name)}


def _in_words(first: Facts, found: Mapping[int, Facts]) -> list[str]:
    """It returns a line for each fact in which ranks differ."""
    names = sorted({name for facts in found.values() for name in facts})
    return [
        f"{name}: {by_rank([found[rank].get(name, first.get(name, NONE)) for rank in sorted(found)])}"
        for name in names
    ]


def by_rank(values: Sequence[str]) -> str:
    """It tells the different ones of values, which come by rank, each with its ranks."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {_ranks(of)}" for value, of in ranks.items())


def _ranks(ranks: Sequence[int]) -> str:
    """It names ranks, the first few of many."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"ranks {', '.join(map(str, ranks[:NAMED]))}{more}"


def _reason(error: dist.DistNetworkError) -> str:
    """It returns the heart of torch's message."""
    return str(error).partition("\n")[0].rpartition("message: ")[2]
