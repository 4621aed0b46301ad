"""How well series are forecast: SAMformer with and without SAM, other models and least squares, on the same windows.

    surefoot prepare series ETTh1.csv --split-months 12 4 4 --out data/etth1
    python benchmarks/forecasting.py --data data/etth1               all arms and horizons, five seeds
    python benchmarks/forecasting.py --data data/etth1 --arms samformer+sam --horizons 96 --seeds 1 2

The protocol is that of SAMformer (arXiv 2402.10198, and its released code): windows of 512 steps in time, batches of
32, Adam at 1e-3 with a cosine that begins again every 5 epochs, SAM with rho = 0.7 at every horizon, early stopping
after 5 epochs without a lower validation loss, and the weights of the lowest one. Each cell is a run of
`python -m pretrain` by configs/forecasting/etth1.toml, whose test error `surefoot evaluate` tells; all windows of the
test split count. `least squares` is the linear map, shared by the channels, that fits the train windows best in closed
form, each window less its last value; with a bias for each step of the horizon, and without.

Writes runs.jsonl, a line a cell; cells that are there do not run again. Prints a table of means and deviations.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.series.source import SeriesSource
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.storage import open_folder
from pretrain.config.loader import load_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/forecasting/etth1.toml"
BATCH, EPOCHS_A_CYCLE, MOST_EPOCHS = 32, 5, 300
SAM = "optimizer.sharpness_aware.rho=0.7"
NO_SAM = "optimizer.sharpness_aware.rho=0"
TEMPORAL = (
    "model.kind=temporal",
    "model.num_layers=1",
    "model.hidden_size=32",
    "model.attention={num_heads=2}",
    "model.dropout=0.1",
)
"""One small block: attention over 512 times is slow on CPUs."""
SLOW = ("model.head_init=zero", "optimizer.learning_rate=1e-4", "schedule.minimum_ratio=1e-2")
"""The floor of the learning rate stays 1e-6."""
DEEP = ("model.num_layers=12",)
ARMS: Mapping[str, tuple[str, ...]] = {
    "samformer+sam": (SAM,),
    "samformer+sam, rho 1": ("optimizer.sharpness_aware.rho=1",),
    "samformer+sam, rho 0.4": ("optimizer.sharpness_aware.rho=0.4",),
    "samformer+sam, zero head, rate 1e-4": (SAM, *SLOW),
    "samformer, zero head, rate 1e-4": (NO_SAM, *SLOW),
    "samformer, zero head, rate 1e-4, no bias": (NO_SAM, *SLOW, "model.bias=false"),
    "samformer+sam, zero head, rate 1e-4, no bias": (SAM, *SLOW, "model.bias=false"),
    "samformer": (NO_SAM,),
    "samformer+sigma": (NO_SAM, "model.reparametrization=sigma"),
    "deep": (*DEEP, NO_SAM),
    "deep+sam": (*DEEP, SAM),
    "deep+sigma": (*DEEP, NO_SAM, "model.reparametrization=sigma"),
    "deep+sigma+sam": (*DEEP, SAM, "model.reparametrization=sigma"),
    "tsmixer": ("model.kind=tsmixer", NO_SAM),
    "tsmixer+sam": ("model.kind=tsmixer", SAM),
    "temporal": (*TEMPORAL, NO_SAM),
    "dlinear": ("model.kind=dlinear", NO_SAM),
    "linear": ("model.kind=linear", NO_SAM),
}
"""Overrides of the configuration."""
QUIET = (
    "watchdog.enabled=false",
    "probes.every_steps=1000000",
    "journal.tensorboard=false",
    "checkpoint.every_steps=1000000",  # but for the best and the last
    "checkpoint.keep_last=1",
)
"""What a run does beside: nothing that would not be in the paper."""
LEAST_SQUARES: Mapping[str, bool] = {"least squares": True, "least squares, no bias": False}
"""Whether there is a bias."""
HORIZONS = (96, 192, 336, 720)
SEEDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Cell:
    """It is one run."""

    arm: str
    horizon: int
    seed: int

    @property
    def name(self) -> str:
        return f"{re.sub('[^a-z0-9.]+', '-', self.arm)}-{self.horizon}-{self.seed}"


def windows(data: Path, split: str, horizon: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """It returns the past (windows x channels, L) and the future (windows x channels, H) of a split, float64."""
    config = load_config(CONFIG, [f'data.sources=[{{path="{data}"}}]', f"data.horizon={horizon}"])
    source = SeriesSource()
    dataset: Dataset[Any] = source.open(open_folder(str(data / split), None), config.data)
    batch = source.collator(dataset.manifest, config.data)([dataset.read(n) for n in range(len(dataset))])
    past, future = batch.x_BDL.double().numpy(), batch.y_BDH.double().numpy()
    return past.reshape(-1, past.shape[-1]), future.reshape(-1, horizon)


def least_squares(data: Path, horizon: int, *, bias: bool) -> dict[str, float]:
    """It fits the train windows in closed form and returns the errors on validation and test windows."""

    def equations(split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        past, future = windows(data, split, horizon)
        last = past[:, -1:]
        return np.concatenate([past[:, :-1] - last, *[np.ones_like(last)] * bias], axis=1), future - last

    inputs, outputs = equations("train")
    weights = np.linalg.solve(inputs.T @ inputs, inputs.T @ outputs)
    errors = {
        split: inputs @ weights - outputs
        for split in ("validation", "test")
        for inputs, outputs in [equations(split)]
    }
    return {
        "validation_mse": float((errors["validation"] ** 2).mean()),
        "test_mse": float((errors["test"] ** 2).mean()),
        "test_mae": float(np.abs(errors["test"]).mean()),
    }


def epoch_steps(data: Path, horizon: int, lookback: int = 512) -> int:
    """It counts the steps that see all train windows once."""
    series = json.loads((data / "train" / "manifest.json").read_text())["series"]
    return -(-sum(one["rows"] - lookback - horizon + 1 for one in series) // BATCH)


def run(cell: Cell, data: Path, out: Path) -> dict[str, Any]:
    """It trains a cell and evaluates the weights of its lowest validation loss on the test split."""
    steps = epoch_steps(data, cell.horizon)
    overrides = [
        *ARMS[cell.arm],
        f"run.name={cell.name}",
        f"run.folder={out}/runs",
        f"run.seed={cell.seed}",
        f"run.steps={MOST_EPOCHS * steps}",
        f'data.sources=[{{path="{data}"}}]',
        f"data.horizon={cell.horizon}",
        f"evaluation.every_steps={steps}",
        f"schedule.restart_every={EPOCHS_A_CYCLE * steps}",
        *QUIET,
    ]
    words = [str(CONFIG), *(word for override in overrides for word in ("--set", override))]
    started = time.perf_counter()
    called([sys.executable, "-m", "pretrain", *words], out / "logs" / f"{cell.name}.log")
    seconds = time.perf_counter() - started
    folder = out / "runs" / cell.name
    command = [
        sys.executable,
        "-m",
        "pretrain.commands",
        "evaluate",
        str(folder),
        "--data",
        str(data / "test"),
    ]
    found = json.loads(called([*command, "--json"], out / "logs" / f"{cell.name}.evaluate.log"))
    losses = {
        row["step"]: row["validation_loss"]
        for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if "validation_loss" in row
    }
    best = min(losses, key=losses.__getitem__)
    metrics = found.get("metrics", found)
    return {
        **vars(cell),
        "epochs": max(losses) // steps,
        "best_epoch": best // steps,
        "validation_mse": losses[best],
        "test_mse": found["loss"],
        "test_mae": metrics["mae"],
        "seconds": seconds,
    }


def called(command: Sequence[str], log: Path) -> str:
    """It runs a command on one thread and returns what it printed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as errors:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        raise SystemExit(f"{command[-1]} ended with {done.returncode}: see {log}")
    return done.stdout


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """It yields lines of Markdown: MSE and MAE of test, mean and deviation over the seeds."""
    cells: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[row["arm"], row["horizon"]].append(row)
    yield "| model | H | seeds | test MSE | test MAE | validation MSE | best epoch | s a run |"
    yield "| --- | --: | --: | --: | --: | --: | --: | --: |"
    for (arm, horizon), found in sorted(
        cells.items(),
        key=lambda item: (item[0][1], list(ARMS).index(item[0][0]) if item[0][0] in ARMS else 99),
    ):
        values = [spread([row[key] for row in found]) for key in ("test_mse", "test_mae", "validation_mse")]
        epochs = fmean(row["best_epoch"] for row in found)
        seconds = fmean(row["seconds"] for row in found)
        yield f"| {arm} | {horizon} | {len(found)} | {' | '.join(values)} | {epochs:.1f} | {seconds:.0f} |"


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f} +- {pstdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that surefoot prepare series has written"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/forecasting")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *LEAST_SQUARES], default=[*ARMS, *LEAST_SQUARES])
    parser.add_argument("--horizons", nargs="+", type=int, default=HORIZONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, each on one thread")
    options = parser.parse_args()
    data, out = options.data.absolute(), options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "runs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["arm"], row["horizon"], row["seed"]) for row in rows}

    def take(cell: Cell) -> None:
        if cell.arm in LEAST_SQUARES:
            found = least_squares(data, cell.horizon, bias=LEAST_SQUARES[cell.arm])
            row = {**vars(cell), "best_epoch": 0, "seconds": 0.0, **found}
        else:
            row = run(cell, data, out)
        rows.append(row)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    wanted = [
        Cell(arm, horizon, seed)
        for horizon in options.horizons
        for seed in options.seeds
        for arm in options.arms
        if arm not in LEAST_SQUARES or seed == options.seeds[0]
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(take, [cell for cell in wanted if tuple(vars(cell).values()) not in done]))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
