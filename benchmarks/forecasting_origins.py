"""Whether a linear map should have biases is asked of the train and validation months alone, from several origins.

    python benchmarks/forecasting_origins.py ETTh1.csv

One validation split says little of what drifts. Here the least-squares map of benchmarks/forecasting.py is fitted to
the first 4 to 12 months and judged on the 4 that follow, which all lie before the test split. Prints a table.
"""

import argparse
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

HOURS_A_MONTH, LOOKBACK, TRAIN_MONTHS, JUDGED_MONTHS = 30 * 24, 512, 12, 4
ORIGINS = range(4, TRAIN_MONTHS + 1)
"""Months before what is judged."""
HORIZONS = (96, 192, 336, 720)

Array = NDArray[np.float64]


def equations(rows: Array, horizon: int, *, bias: bool) -> tuple[Array, Array]:
    """It returns inputs and outputs of all windows and channels, each less the last value before the future; `rows`
    (times x channels)."""
    windows = np.lib.stride_tricks.sliding_window_view(rows, LOOKBACK + horizon, axis=0)
    past, future = np.split(windows.reshape(-1, LOOKBACK + horizon), [LOOKBACK], axis=1)
    last = past[:, -1:]
    return np.concatenate([past[:, :-1] - last, *[np.ones_like(last)] * bias], axis=1), future - last


def error(rows: Array, origin: int, horizon: int, *, bias: bool) -> float:
    """It fits the map to the months before `origin` and returns its mean squared error on those behind."""
    start = origin * HOURS_A_MONTH
    inputs, outputs = equations(rows[:start], horizon, bias=bias)
    weights = np.linalg.solve(inputs.T @ inputs, inputs.T @ outputs)
    end = start + JUDGED_MONTHS * HOURS_A_MONTH
    inputs, outputs = equations(rows[start - LOOKBACK : end], horizon, bias=bias)
    return float(((inputs @ weights - outputs) ** 2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="hours and channels, as ETTh1.csv has them")
    table = np.genfromtxt(parser.parse_args().file, delimiter=",", skip_header=1)[:, 1:]
    train = table[: TRAIN_MONTHS * HOURS_A_MONTH]
    rows = (table - train.mean(0)) / train.std(0)
    print("| H | months before | MSE with biases | without |\n| --: | --: | --: | --: |")
    for horizon in HORIZONS:
        pairs = []
        for origin in ORIGINS:
            pairs.append([error(rows, origin, horizon, bias=bias) for bias in (True, False)])
            print(f"| {horizon} | {origin} | {pairs[-1][0]:.4f} | {pairs[-1][1]:.4f} |", flush=True)
        means, better = [fmean(column) for column in zip(*pairs, strict=True)], sum(b < a for a, b in pairs)
        print(
            f"| {horizon} | mean | {means[0]:.4f} | {means[1]:.4f}, better {better} of {len(pairs)} times |"
        )


if __name__ == "__main__":
    main()
