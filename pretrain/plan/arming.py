"""When the watchdog begins to look for drift: once the warmup is over and a baseline full of values from after it."""

from bisect import bisect_left
from collections.abc import Iterator

from pretrain.config.run import RunConfig

GUARD = 16
"""Steps by which a baseline is late: trouble shows before it is learned."""
SHORT_WINDOW = 64
"""Values in the baseline of TEV's level, and at least of what probes measure every few steps: with fewer, the first
specialisation of attention heads looks like collapse."""
LATE = 0.8
"""Of a run: what begins after it is as good as not there."""


def guard(stride: int) -> int:
    """It returns by how many values a baseline is late whose values are `stride` steps apart."""
    return max(2, GUARD // stride)


def probed_window(config: RunConfig) -> int:
    """It returns the values in the baseline of a signal that probes measure."""
    return max(SHORT_WINDOW, config.watchdog.window // config.probes.every_steps)


def first_comparison(warmup: int, window: int, stride: int = 1) -> int:
    """It returns the first step that a signal is compared at, which has a value every `stride` steps."""
    first_value = (warmup // stride + 1) * stride
    return first_value + (window + guard(stride)) * stride


def watched_from(config: RunConfig) -> int:
    """It returns the first step that a drift of the loss counts in."""
    return first_comparison(config.schedule.warmup_steps, config.watchdog.window)


def arming_warnings(config: RunConfig) -> Iterator[str]:
    """It yields what of the watchdog begins too late in this run, with values that would work."""
    watchdog, warmup, steps = config.watchdog, config.schedule.warmup_steps, config.run.steps
    if not watchdog.enabled:
        return
    if (begin := watched_from(config)) > LATE * steps:
        yield (
            f"the watchdog looks for drift from step {begin:,} on (schedule.warmup_steps {warmup:,} + watchdog.window "
            f"{watchdog.window:,} + {GUARD}), and the run has {steps:,}: before that only bad numbers and caps count; "
            f"{_window_that_works(config)}"
        )
    elif (
        begin := first_comparison(warmup, probed_window(config), every := config.probes.every_steps)
    ) > LATE * steps:
        # The more steps between looks the later; so many numbers of steps, from 1 on, begin in time.
        works = bisect_left(
            range(1, every + 1), True, key=lambda n: first_comparison(warmup, SHORT_WINDOW, n) > LATE * steps
        )
        yield (
            f"the watchdog looks for drift of what probes measure from step {begin:,} on, and the run has {steps:,}: "
            f"it needs {probed_window(config)} looks, one in probes.every_steps = {every} steps"
            + (f"; for example every_steps = {works}" if works else "")
        )
    if watchdog.horizon >= steps:
        yield (
            f"no checkpoint is certified before the last step: watchdog.horizon = {watchdog.horizon:,} healthy steps "
            f"do not fit into a run of {steps:,}; for example horizon = {max(steps // 8, 1)}"
        )


def _window_that_works(config: RunConfig) -> str:
    """It says which window begins by the middle of the run, or how long the run would have to be."""
    warmup, steps = config.schedule.warmup_steps, config.run.steps
    window = steps // 2 - first_comparison(warmup, 0)
    if window >= SHORT_WINDOW:
        window = min(window, config.watchdog.window) // 16 * 16
        return f"for example window = {window} begins at step {first_comparison(warmup, window):,}"
    least = 2 * first_comparison(warmup, SHORT_WINDOW)
    return (
        f"a window of {SHORT_WINDOW} values, the fewest that are of use, takes a run of {least:,} steps; shorter ones "
        "have watchdog.maximum_loss"
    )
