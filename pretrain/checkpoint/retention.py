"""Pure functions of tags decide which checkpoints are kept.

A run without a watchdog keeps what is configured. One with a watchdog keeps in addition what it may go back to:

    ages:     4A                    A            0
         o    |     m               c1    c0    now

o the newest certified one of at least age 4A; m the oldest younger one, which will be the next o; c0, c1 the two newest
certified ones; and all that are newer than c1, certified or not.

`now` is the step at which the newest one, c0, was certified, and A the age that c1 had then: the oldest that the newest
certified checkpoint gets before there is another one. So at all times there is one at least four times as old.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pretrain.checkpoint.tag import Tag

OLDER = 4
"""How many times as old as the newest certified checkpoint the older one is."""
CONDEMNED_KEPT = 3
"""Condemned checkpoints that are kept, the newest ones."""


@dataclass(frozen=True)
class Retention:
    """It says what to keep."""

    keep_last: int
    """The newest ones, at least 1."""
    keep_every: int | None
    """Those at multiples of this step."""
    certified: bool
    """Whether also what a rollback may go back to."""

    def to_delete(
        self, sealed: Iterable[Tag], certified: Mapping[Tag, int], best: Tag | None = None
    ) -> list[Tag]:
        """It returns which of the sealed checkpoints to delete, oldest first; `certified` are those of them with a
        certificate, each with the step at which it was given, and `best` is one to be kept for its validation loss.

        With certificates, only what two newer ones have superseded.
        """
        tags = sorted(sealed)
        kept = set(tags[-self.keep_last :])
        if self.keep_every is not None:
            kept |= {tag for tag in tags if tag.step % self.keep_every == 0}
        if self.certified:
            kept |= for_rollback(tags, certified)
        return [tag for tag in tags if tag not in kept and tag != best]


def for_rollback(sealed: Iterable[Tag], certified: Mapping[Tag, int]) -> set[Tag]:
    """It returns what a rollback may go back to, now or when its turn has come."""
    if len(certified) < 2:
        return set(sealed)
    *older, before, newest = sorted(certified)
    now = certified[newest]
    limit = OLDER * (now - before.step)
    old = [tag for tag in older if now - tag.step >= limit]
    kept = {tag for tag in sealed if tag >= before}
    return kept | set(old[-1:]) | set(older[len(old) : len(old) + 1])
