"""What is kept: as configured, and what a rollback may go back to."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.checkpoint.retention import OLDER, Retention, for_rollback
from pretrain.checkpoint.tag import Tag

TAGS = st.lists(
    st.builds(Tag, attempt=st.integers(1, 30), step=st.integers(0, 50).map(lambda n: n * 100)),
    unique_by=lambda tag: tag.attempt,
)


def tags_at(*steps: int) -> list[Tag]:
    return [Tag(attempt=n, step=step) for n, step in enumerate(steps, start=1)]


def test_keeps_last_and_every() -> None:
    tags = tags_at(*range(100, 1001, 100))
    deleted = Retention(keep_last=3, keep_every=400, certified=False).to_delete(tags, {})
    assert [tag.step for tag in deleted] == [100, 200, 300, 500, 600, 700]


@settings(deadline=None)
@given(
    tags=TAGS, keep_last=st.integers(1, 5), keep_every=st.none() | st.integers(1, 20).map(lambda n: n * 100)
)
def test_deletes_exactly_what_need_not_stay(tags: list[Tag], keep_last: int, keep_every: int | None) -> None:
    retention = Retention(keep_last=keep_last, keep_every=keep_every, certified=False)
    deleted = retention.to_delete(tags, dict.fromkeys(tags, 0))
    newest = sorted(tags, key=lambda tag: -tag.attempt)[:keep_last]
    for tag in tags:
        kept = tag in newest or (keep_every is not None and tag.step % keep_every == 0)
        assert (tag in deleted) is not kept
    assert len(deleted) == len(set(deleted))


@settings(deadline=None)
@given(tags=TAGS, certified=st.sets(st.integers(1, 30)))
def test_nothing_goes_that_two_certified_ones_have_not_superseded(
    tags: list[Tag], certified: set[int]
) -> None:
    given = {tag: tag.step + 128 for tag in tags if tag.attempt in certified}
    for tag in Retention(keep_last=1, keep_every=None, certified=True).to_delete(tags, given):
        assert sum(newer > tag for newer in given) >= 2


def test_keeps_two_certified_an_older_one_and_the_next_older_one() -> None:
    tags = tags_at(*range(1000, 10001, 1000))
    certified = {tag: tag.step + 128 for tag in tags[:8]}
    kept = for_rollback(tags, certified)
    # At 8128 the one before the newest is 1128 steps old, and 3000 the newest of at least 4512.
    assert [tag.step for tag in sorted(kept)] == [3000, 4000, 7000, 8000, 9000, 10000]


@dataclass
class Run:
    """A run that saves every `every` steps, and certifies what has been healthy for `horizon` steps."""

    every: int
    horizon: int
    ill: set[int]
    """Numbers of checkpoints that are never certified."""

    def kept_over_time(self, count: int) -> list[tuple[int, list[int], list[int]]]:
        """At the end of each step: the step, and the steps of the certified and of all checkpoints that are there."""
        sealed: list[Tag] = []
        certified: dict[Tag, int] = {}
        course = []
        for step in range(1, count * self.every + 1):
            if step % self.every == 0:
                sealed.append(Tag(attempt=step // self.every, step=step))
            due = [t for t in sealed if t.step + self.horizon == step and t.attempt not in self.ill]
            certified |= dict.fromkeys(due, step)
            if due or step % self.every == 0:
                retention = Retention(keep_last=1, keep_every=None, certified=True)
                for tag in retention.to_delete(sealed, certified):
                    sealed.remove(tag)
                    certified.pop(tag, None)
            course.append((step, [tag.step for tag in certified], [tag.step for tag in sealed]))
        return course


@settings(deadline=None)
@given(every=st.integers(1, 40), horizon=st.integers(1, 60), count=st.integers(1, 30))
def test_there_is_always_one_four_times_as_old_as_the_newest(every: int, horizon: int, count: int) -> None:
    """Once a healthy run is old enough; and there are never many."""
    waiting = horizon // every + 2
    for step, certified, sealed in Run(every, horizon, set()).kept_over_time(count):
        assert len(certified) <= 4
        assert len(sealed) <= 4 + waiting
        if certified and certified[0] != every:  # until then, the first one of the run is there
            assert step - certified[0] >= OLDER * (step - certified[-1])
            assert len(certified) >= 3


@settings(deadline=None)
@given(
    every=st.integers(1, 20),
    horizon=st.integers(1, 30),
    count=st.integers(1, 30),
    ill=st.sets(st.integers(1, 30)),
)
def test_two_certified_ones_stay_whatever_happens(
    every: int, horizon: int, count: int, ill: set[int]
) -> None:
    ever = 0
    before: list[int] = []
    for _, certified, sealed in Run(every, horizon, ill).kept_over_time(count):
        ever += len(set(certified) - set(before))
        before = certified
        assert len(certified) >= min(ever, 2)
        assert set(certified) <= set(sealed)
