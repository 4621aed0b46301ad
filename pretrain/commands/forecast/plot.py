"""A forecast is drawn behind the rows that it was made from, where matplotlib is installed."""

import io
from collections.abc import Sequence

from pretrain.errors import ConfigurationError
from pretrain.inference.forecast import Intervals
from pretrain.runtime.libraries import find_library
from pretrain.tasks.forecaster import Past, Values

MATPLOTLIB = find_library("matplotlib", "matplotlib")
if MATPLOTLIB.usable:
    from matplotlib.figure import Figure

SHOWN_COLUMNS = 12
"""The first ones of a series with more."""
PAST_SHOWN = 2
"""Rows that are drawn of the past, in horizons."""


def need_matplotlib() -> None:
    """It raises ConfigurationError where matplotlib is missing."""
    if not MATPLOTLIB.usable:
        raise ConfigurationError(
            f"--plot: matplotlib, which draws, is {MATPLOTLIB.description}; pip install 'surefoot[plots]'"
        )


def plotted(columns: Sequence[str], past: Past, values_HD: Values, around: Intervals | None) -> bytes:
    """It returns a PNG: a panel for each column."""
    horizon, shown_columns = len(values_HD), columns[:SHOWN_COLUMNS]
    before_LD = past.values_LD[-PAST_SHOWN * horizon :]
    figure = Figure(figsize=(9, 1.8 * len(shown_columns) + 0.6), layout="constrained")
    panels = figure.subplots(len(shown_columns), squeeze=False, sharex=True)[:, 0]
    ahead = range(1, horizon + 1)
    for column, (panel, name) in enumerate(zip(panels, shown_columns, strict=True)):
        panel.plot(range(1 - len(before_LD), 1), before_LD[:, column], color="black", linewidth=1)
        panel.plot(ahead, values_HD[:, column], color="tab:blue", linewidth=1.5)
        if around:
            lower_HD, upper_HD = around.around(values_HD)
            panel.fill_between(ahead, lower_HD[:, column], upper_HD[:, column], color="tab:blue", alpha=0.2)
        panel.set_ylabel(name, parse_math=False)
    about = f", {around.level:.0%} intervals" if around else ""
    panels[0].set_title(f"behind {past.times_L[-1]}{about}")
    panels[-1].set_xlabel("steps in time")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
