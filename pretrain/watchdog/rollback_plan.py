"""This module plans the rollback that a verdict asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from data_pipeline.reading.ranges import SampleRange
from pretrain.config.run import RunConfig
from pretrain.ledger.history import Rollback
from pretrain.step import Remedy, Verdict
from pretrain.watchdog.policy import LEARNING_RATE_FACTOR, WIDTH, JudgeInput, relapsed_from


@dataclass(frozen=True)
class RollbackPlan:
    """It says what a rollback is to do; which candidate there is for it, the checkpoint manager knows."""

    limit_step: int
    """Back to the newest certified checkpoint up to this step; where there is none so old, to the oldest."""
    oldest: bool
    """Back to the oldest one instead."""
    draft: Rollback
    """The rollback with `limit_step` for a target."""

    def to(self, target_step: int, target_tag: str | None) -> Rollback:
        """It returns the rollback to the checkpoint that was chosen; none: a candidate in host memory."""
        return replace(self.draft, target_step=target_step, target_tag=target_tag)


def plan_rollback(
    verdict: Verdict, given: JudgeInput, draws: Mapping[int, SampleRange], config: RunConfig
) -> RollbackPlan:
    """It plans what a ROLLBACK verdict on this input asks for.

    `draws` maps the last steps of this lineage, without gaps, up to the judged one, to their ranges of samples.
    """
    remedy = verdict.remedy
    assert remedy is not None, "a rollback has a remedy"
    limit = verdict.onset - WIDTH[remedy] * config.watchdog.margin
    if remedy in (Remedy.DEEPER, Remedy.DEEPEST):
        limit = min([limit, *(rollback.target_step - 1 for rollback in relapsed_from(given, config))])
    window = _window(verdict.onset, given.report.step, WIDTH[remedy], draws, config)
    draft = Rollback(
        step=given.report.step,
        attempt=given.attempt,
        remedy=remedy,
        onset=verdict.onset,
        target_step=max(limit, 0),
        target_tag=None,
        skip=() if remedy is Remedy.REPLAY else (window,),
        learning_rate_factor=LEARNING_RATE_FACTOR[remedy],
        learning_rate_until=given.state.updates + config.watchdog.horizon,
        reason=verdict.reason,
    )
    return RollbackPlan(limit_step=draft.target_step, oldest=remedy is Remedy.DEEPEST, draft=draft)


def _window(
    onset: int, step: int, width: int, draws: Mapping[int, SampleRange], config: RunConfig
) -> SampleRange:
    """It returns the samples from a margin before the onset, or from the oldest step that is remembered, to some steps'
    worth on."""
    first = max(onset - width * config.watchdog.margin, min(draws))
    after = width * config.watchdog.skip_after * config.data.global_batch_size
    return draws[min(first, step)][0], draws[step][1] + after
