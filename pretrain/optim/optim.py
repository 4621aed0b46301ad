"""Parameter groups, AdamW and learning-rate schedules."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from pretrain.optim.config import AdamWConfig, ScheduleConfig


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases and normalization gains, which have one dimension, do not."""
    trained = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_adamw(
    groups: list[dict[str, object]], config: AdamWConfig, optimizer_class: type[torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """AdamW with learning rate 0: the engine sets it before every update.

    `optimizer_class` is torch's AdamW or apex's FusedAdam.
    """
    options: dict[str, object] = {
        "lr": 0.0,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
    }
    if optimizer_class is torch.optim.AdamW:
        options["fused"] = True
    return optimizer_class(groups, **options)  # type: ignore[arg-type]


def learning_rate(update: int, total: int, config: ScheduleConfig, peak: float) -> float:
    """Learning rate of update `update` (0 is the first) of a run of `total` updates."""
    if update < config.warmup_steps:
        return peak * (update + 1) / config.warmup_steps
    return peak * _decay(update, total, config)


def decay_start(total: int, config: ScheduleConfig) -> int:
    """The update at which warmup-stable-decay begins to decay, in a run of `total` updates."""
    return total - (config.decay_steps or max(total // 5, 1))


def _decay(update: int, total: int, config: ScheduleConfig) -> float:
    """Factor after warmup."""
    floor = config.minimum_ratio
    if config.kind == "constant":
        return 1.0
    if config.kind == "inverse_sqrt":
        # Vaswani et al. 2017, arXiv 1706.03762, section 5.3, continuous at the end of warmup.
        start = max(config.warmup_steps, 1)
        return max(floor, math.sqrt(start / max(update, start)))
    if config.kind == "wsd":
        # Warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395), with a linear decay.
        return 1 - (1 - floor) * _progress(update, decay_start(total, config), total)
    progress = _progress(update, config.warmup_steps, config.decay_steps or total)
    if config.kind == "linear":
        return 1 - (1 - floor) * progress
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _progress(update: int, start: int, stop: int) -> float:
    """How far `update` is from `start` to `stop`, within [0, 1]; 1 at the last update before `stop`."""
    return min(max((update - start + 1) / max(stop - start, 1), 0.0), 1.0)
