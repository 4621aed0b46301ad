"""The signals that drifts are looked for in stand in one table, with one row a signal.

TEV grows for the whole run, in waves: its level is held against a short past, which catches jumps, and a creeping drift
is sought in its growth over blocks of steps, in units of what the updates could have made of it. The mean row moves at
once where all rows drift alike, of which TEV sees the square. docs/watchdog.md tells what was tried before.

Constants that are multiples of an optimizer's `update_scale`, and `tev_growth`, whose unit that is, apply where it has
one: where updates go by the gradient, no learning rate says how far a weight moves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pretrain.config.run import RunConfig
from pretrain.models.outline import LayerSize
from pretrain.plan.arming import SHORT_WINDOW, probed_window
from pretrain.watchdog.cusum import HIGH, LOW, ChannelSettings

GROWTH_STEPS = 8
"""Updates in a block of `tev_growth`: growth from step to step is correlated (0.9), that over 8 half independent."""

_GROWTH_FLOOR, _GROWTH_WINDOW = 0.08, 64
"""1 would be all weights moving straight away from their row's mean by one `update_scale` in every update; healthy runs
have 0.4 to 0.01, in waves of 0.05."""
_SHIFT_FLOOR, _SHIFT_WINDOW = 0.3, 128
"""The mean row of healthy runs moves within a factor of 1.5, in waves of twenty steps."""
_UPDATE_FLOOR = 0.1
"""Updates, an embedding's above all, scatter by that much in waves of some hundred steps."""
_ENTROPY_FLOORS = {"min": 0.15, "mean": 0.05}
"""While attention forms, its most certain head falls by a third of a nat in fifty steps and the mean by a tenth; logits
that explode take the former from 3 nats to 0.1 and the latter to half within few."""
_CERTAIN = 0.1
"""Nats added to an entropy: how certain exactly a head is that looks at one token is no news."""
_LEVEL_FLOOR, _LEVEL_UPDATES = 2e-3, 20.0
"""Least spread of the level of TEV, relative to it, and updates that it may be off in a healthy run."""
_SUDDEN_FALL = replace(LOW, allowance=2.0)
"""A loss falls in earnest too."""


@dataclass(frozen=True)
class Signal:
    """It says how one signal is read off a report, and watched."""

    name: str
    channel: ChannelSettings
    """Window, least spread, directions."""
    offset: float = 0.0
    """Added before the logarithm is taken."""
    by_rate: bool = False
    """It is a change of the weights, and compared with the learning rate that made it."""
    growth_of: str = ""
    """The measure whose growth over blocks of steps it is, instead of a logarithm of its own."""

    @property
    def measure(self) -> str:
        """It names the number in the report that the signal comes from."""
        return self.growth_of or self.name

    def value(self, number: float, last_rate: float) -> float | None:
        """It returns what the channel looks at, none where there is no logarithm; `last_rate` has led to this step."""
        if self.by_rate:
            if not last_rate:
                return None
            number /= last_rate
        number += self.offset
        # To nine digits: mathematical libraries of different machines differ in the last.
        return round(math.log(number), 9) if number > 0 else None


@dataclass
class Growth:
    """It follows the change of TEV in blocks of steps, by what the learning rates could have made of it."""

    start: float | None = None
    """TEV at the block's start."""
    reach: float = 0.0
    """Sum of the block's learning rates."""
    steps: int = 0

    def after(self, tev: float, learning_rate: float) -> float | None:
        """It returns the growth of the block that ends with `tev`, or none; `learning_rate` is the next update's."""
        growth = None
        if self.start is None or (self.steps == GROWTH_STEPS and self.reach == 0):
            self.start, self.steps, self.reach = tev, 0, 0.0
        elif self.steps == GROWTH_STEPS:
            growth = round((tev - self.start) / self.reach, 9)
            self.start, self.steps, self.reach = tev, 0, 0.0
        self.steps += 1
        self.reach += learning_rate
        return growth


def signals(config: RunConfig) -> tuple[Signal, ...]:
    """It returns the table of a run."""
    always = ChannelSettings(config.watchdog.window, config.watchdog.threshold)
    stride = config.probes.every_steps
    probed = replace(always, window=probed_window(config), stride=stride)
    update = replace(probed, floor=_UPDATE_FLOOR)
    entropies = {
        name: replace(probed, directions=(HIGH, LOW), floor=floor) for name, floor in _ENTROPY_FLOORS.items()
    }
    tables = watched_tables(config)
    return (
        Signal("loss", replace(always, directions=(HIGH, _SUDDEN_FALL))),
        Signal("gradient_norm", always),
        Signal("gradient_variance", probed),
        Signal("update_rms", update, by_rate=True),
        *(Signal(f"update_rms/{layer.name}", update, by_rate=True) for layer in tables.values()),
        *(Signal(f"attention_entropy_{name}", one, offset=_CERTAIN) for name, one in entropies.items()),
        *(row for prefix in tables for row in table_signals(prefix, always, config)),
    )


def table_signals(prefix: str, always: ChannelSettings, config: RunConfig) -> Iterator[Signal]:
    """It yields the rows of one table of the model, whose measures are called `prefix_mean` and so on."""
    learning_rate, scale = config.optimizer.learning_rate, config.optimizer.update_scale
    waves = 0.0 if scale is None else _LEVEL_UPDATES * scale * learning_rate
    level = replace(always, window=min(always.window, SHORT_WINDOW), floor=max(_LEVEL_FLOOR, waves))
    for name in ("mean", "std", "max"):
        yield Signal(f"{prefix}_{name}", level)
    if scale is not None:
        growth = replace(
            always,
            window=_GROWTH_WINDOW,
            stride=GROWTH_STEPS,
            floor=_GROWTH_FLOOR * scale,
            uncertainty=0.0,
        )
        yield Signal(f"{prefix}_growth", growth, growth_of=f"{prefix}_mean")
    shift = replace(always, window=min(always.window, _SHIFT_WINDOW), floor=_SHIFT_FLOOR)
    yield Signal(f"{prefix}_shift", shift, by_rate=True)


def watched_tables(config: RunConfig) -> dict[str, LayerSize]:
    """It returns the layers with a table that inputs are looked up in, by what its measures are called."""
    outline = config.model.outline(config.data)
    layers = [outline.layers[index] for index in outline.watched_tables]
    return {layer.table.measures: layer for layer in layers if layer.table}
