"""A schedule gives the learning rate of every update."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from pretrain.optim.config import ScheduleConfig


def learning_rate(update: int, total: int, config: ScheduleConfig, peak: float) -> float:
    """It returns the learning rate of update `update` (0 is the first) of a run of `total` updates."""
    if update < config.warmup_steps:
        return peak * (update + 1) / config.warmup_steps
    return peak * _decay(update, total, config)


def decay_start(total: int, config: ScheduleConfig) -> int:
    """It returns the update at which warmup-stable-decay begins to decay, in a run of `total` updates."""
    return total - (config.decay_steps or max(total // 5, 1))


def steps_down(total: int, config: ScheduleConfig) -> Sequence[int]:
    """It returns the updates, of a run of `total`, that a `step` schedule goes down at."""
    every = config.step_every
    return range(config.warmup_steps + every, total, every) if every else config.milestones


def restarts(total: int, config: ScheduleConfig) -> Sequence[int]:
    """It returns the updates, of a run of `total`, that `cosine_restarts` begins again at."""
    period = config.restart_every or total
    return range(config.warmup_steps + period, total, period)


def _decay(update: int, total: int, config: ScheduleConfig) -> float:
    """It returns the factor after warmup."""
    floor = config.minimum_ratio
    if config.kind == "constant":
        return 1.0
    if config.kind == "inverse_sqrt":
        # Vaswani et al. 2017, arXiv 1706.03762, section 5.3, continuous at the end of warmup.
        return max(floor, math.sqrt(max(config.warmup_steps, 1) / (update + 1)))
    if config.kind == "step":
        return max(floor, config.step_factor ** bisect_right(steps_down(total, config), update))
    if config.kind == "wsd":
        # Warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395), with a linear decay.
        return 1 - (1 - floor) * _progress(update, decay_start(total, config), total)
    if config.kind == "cosine_restarts":
        # Loshchilov and Hutter 2017, arXiv 1608.03983, with periods of equal length.
        period = config.restart_every or total
        return _cosine((update - config.warmup_steps) % period / period, floor)
    progress = _progress(update, config.warmup_steps, config.decay_steps or total)
    if config.kind == "linear":
        return 1 - (1 - floor) * progress
    return _cosine(progress, floor)


def _cosine(progress: float, floor: float) -> float:
    """It falls from 1 to the floor along half a cosine."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _progress(update: int, start: int, stop: int) -> float:
    """It tells how far `update` is from `start` to `stop`, within [0, 1]; 1 at the last update before `stop`."""
    return min(max((update - start + 1) / max(stop - start, 1), 0.0), 1.0)
