"""From a verdict to the rollback that it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from data_pipeline.ranges import Range
from pretrain.config import RunConfig
from pretrain.records import Remedy, Verdict
from pretrain.watchdog.policy import LEARNING_RATE_FACTOR, WIDTH, Evidence, relapsed_from
from pretrain.watchdog.recovery import Rollback


@dataclass(frozen=True)
class RollbackPlan:
    """What a rollback is to do; which checkpoint there is for it, the checkpointer knows."""

    limit_step: int
    """Back to the newest certified checkpoint up to this step; where there is none so old, to the oldest."""
    oldest: bool
    """Back to the oldest one instead."""
    draft: Rollback
    """The rollback with `limit_step` for a target."""

    def to(self, target_step: int, target_tag: str | None) -> Rollback:
        """The rollback to the checkpoint that was chosen; none: a candidate in host memory."""
        return replace(self.draft, target_step=target_step, target_tag=target_tag)


def plan_rollback(
    verdict: Verdict, evidence: Evidence, draws: Mapping[int, Range], config: RunConfig
) -> RollbackPlan:
    """Plan what a ROLLBACK verdict on this evidence asks for.

    `draws`: step -> draws of the last steps of this lineage, without gaps, up to the judged one.
    """
    remedy = verdict.remedy
    assert remedy is not None, "a rollback has a remedy"
    limit = verdict.onset - WIDTH[remedy] * config.watchdog.margin
    if remedy in (Remedy.DEEPER, Remedy.DEEPEST):
        limit = min([limit, *(rollback.target_step - 1 for rollback in relapsed_from(evidence, config))])
    window = _window(verdict.onset, evidence.report.step, WIDTH[remedy], draws, config)
    draft = Rollback(
        step=evidence.report.step,
        attempt=evidence.attempt,
        remedy=remedy,
        onset=verdict.onset,
        target_step=max(limit, 0),
        target_tag=None,
        skip=() if remedy is Remedy.REPLAY else (window,),
        learning_rate_factor=LEARNING_RATE_FACTOR[remedy],
        learning_rate_until=evidence.state.updates + config.watchdog.horizon,
        reason=verdict.reason,
    )
    return RollbackPlan(limit_step=draft.target_step, oldest=remedy is Remedy.DEEPEST, draft=draft)


def _window(onset: int, step: int, width: int, draws: Mapping[int, Range], config: RunConfig) -> Range:
    """Draws from a margin before the onset, or from the oldest step that is remembered, to some steps' worth on."""
    first = max(onset - width * config.watchdog.margin, min(draws))
    after = width * config.watchdog.skip_after * config.data.global_batch_size
    return draws[min(first, step)][0], draws[step][1] + after
