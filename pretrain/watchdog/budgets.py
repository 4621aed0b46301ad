"""Budgets say how much of each remedy a run may use, and has used."""

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.ledger.history import VETO_WINDOW, RunHistory
from pretrain.step import Remedy

ROLLBACK_WINDOW = 10_000
"""Attempts within which plain rollbacks are counted; the other remedies are counted in the whole run."""

STEPS_TO_ALARM = 32
"""Steps from onset to alarm that the first rollback of a short run may take."""

REMEDY_KEYS: Mapping[Remedy, str] = {
    Remedy.SKIP: "rollbacks",
    Remedy.REPLAY: "replays",
    Remedy.DEEPER: "deeper",
    Remedy.DEEPEST: "deepest",
}
"""Remedy -> its budget in the section `watchdog`."""


@dataclass(frozen=True)
class Budget:
    """A budget is one limit of the section `watchdog`."""

    key: str
    """The user's key that sets it."""
    used: int
    allowed: int
    what: str
    """What is counted, and within what."""

    @property
    def left(self) -> int:
        return max(self.allowed - self.used, 0)

    @property
    def spent(self) -> bool:
        return self.used >= self.allowed

    def __str__(self) -> str:
        return f"{self.used:,} of {self.allowed:,} {self.what} ({self.key})"


def budgets(history: RunHistory, config: RunConfig, attempt: int) -> tuple[Budget, ...]:
    """It returns all budgets as they stand when this attempt is judged."""
    return (
        veto_budget(history, config, attempt),
        *(rollback_budget(remedy, history, config, attempt) for remedy in REMEDY_KEYS),
        skip_budget(history, config),
    )


def rollback_budget(remedy: Remedy, history: RunHistory, config: RunConfig, attempt: int) -> Budget:
    """It returns the budget of rollbacks with this remedy."""
    windowed = remedy is Remedy.SKIP
    return Budget(
        key=f"watchdog.{REMEDY_KEYS[remedy]}",
        used=history.count(remedy, since=attempt - ROLLBACK_WINDOW if windowed else 0),
        allowed=getattr(config.watchdog, REMEDY_KEYS[remedy]),
        what=f"rollbacks ({remedy}) in {f'{ROLLBACK_WINDOW:,} steps' if windowed else 'the run'}",
    )


def veto_budget(history: RunHistory, config: RunConfig, attempt: int) -> Budget:
    """It returns the budget of updates withheld without a rollback."""
    fraction = int(config.watchdog.veto_fraction * VETO_WINDOW)
    return Budget(
        key="watchdog.veto_fraction",
        used=history.vetoes_after(attempt - VETO_WINDOW),
        allowed=max(fraction, config.watchdog.vetoes_in_a_row),
        what=f"vetoes in {VETO_WINDOW:,} steps",
    )


def skip_budget(history: RunHistory, config: RunConfig) -> Budget:
    """It returns the budget of samples that rollbacks leave out. There is always room for one rollback: a short run
    should not end where a long one goes on."""
    total = config.run.steps * config.data.global_batch_size
    one = (
        config.watchdog.margin + STEPS_TO_ALARM + config.watchdog.skip_after
    ) * config.data.global_batch_size
    return Budget(
        key="watchdog.skipped_fraction",
        used=history.skipped_samples,
        allowed=max(int(config.watchdog.skipped_fraction * total), one),
        what="skipped samples in the run",
    )
