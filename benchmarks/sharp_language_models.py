"""What sharpness-aware minimisation makes of a deep language model: loss and curvature at the end, by learning rate.

    python benchmarks/sharp_language_models.py --text input.txt            24 blocks, four rates, with and without SAM
    python benchmarks/sharp_language_models.py --text input.txt --steps 50 --rates 1e-3

The text is read as bytes: nine tenths to learn from, at random places, and the rest to validate on, at fixed ones.
AdamW has a linear warmup over the first tenth of the steps and then a constant rate, so that the curvature at the end
is that of this rate. Runs of a seed begin with the same weights and see the same batches. `train` is the mean loss of
the last tenth of the steps, at the weights themselves; `validation` that of 64 windows; `sharpness` the largest
eigenvalue of the Hessian of the loss on the first 8 of these, with its residual. Seconds are those of the process.

Writes sharp_language_models.jsonl, a line a run; runs that are there do not run again. Prints a table.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from toy_forecasting import RESULTS, Weights, mean_loss, proceed

from data_pipeline.text.batch import TokenBatch
from parallel.eigenvalues import Eigenvalue, Search, largest_eigenvalues, random_normal
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.inference.hessian import LossHessian
from pretrain.models.named import WEIGHT
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels

LAYERS, HIDDEN, HEADS, BYTES, LENGTH, BATCH = 24, 64, 4, 256, 128, 4
VALIDATED, LOOKED_AT = 64, 8
SEARCH = Search(count=1, vectors=26, tolerance=1e-2, products=25)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
RHOS = (0.0, 0.05)


@dataclass(frozen=True)
class Run:
    """It is what a line begins with."""

    rate: float
    rho: float
    seed: int
    steps: int


class Text:
    """Windows of bytes are drawn from its first nine tenths, or lie evenly in the rest."""

    def __init__(self, file: Path) -> None:
        content = torch.from_numpy(np.frombuffer(file.read_bytes(), np.uint8).astype(np.int64))
        cut = len(content) * 9 // 10
        self._train, self._validation = content[:cut], content[cut:]

    def drawn(self, generator: torch.Generator) -> TokenBatch:
        starts = torch.randint(len(self._train) - LENGTH, (BATCH,), generator=generator)
        return windows(self._train, starts)

    def fixed(self, count: int) -> list[TokenBatch]:
        """It returns the first `count` windows of the validation text."""
        starts = torch.linspace(0, len(self._validation) - LENGTH - 1, VALIDATED).long()
        return [windows(self._validation, part) for part in starts[:count].split(BATCH)]


def windows(content: torch.Tensor, starts: torch.Tensor) -> TokenBatch:
    blocks = torch.stack([content[start : start + LENGTH + 1] for start in starts.tolist()])
    return TokenBatch(blocks[:, :-1], blocks[:, 1:], torch.ones(len(blocks), LENGTH))


def make_config(run: Run) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "sharp", "steps": run.steps, "seed": run.seed},
            "model": {
                "num_layers": LAYERS,
                "hidden_size": HIDDEN,
                "vocabulary_size": BYTES,
                "attention": {"num_heads": HEADS},
                "activation_checkpointing": False,
            },
            "data": {
                "sources": [{"path": "none"}],
                "sequence_length": LENGTH,
                "micro_batch_size": BATCH,
                "global_batch_size": BATCH,
            },
            "optimizer": {"learning_rate": run.rate, "sharpness_aware": {"rho": run.rho}},
            "parallel": {"zero_stage": 0},
            "precision": {"dtype": "fp32"},
            "probes": {"every_steps": 1_000_000_000},
            "watchdog": {"enabled": False},
        }
    )


def train(run: Run, text: Text, mesh: ParallelMesh) -> dict[str, Any]:
    started, config, losses = time.process_time(), make_config(run), []
    engine = assemble_engine(config, plan(config, 1), mesh, detect_kernels())
    generator, warmup = torch.Generator().manual_seed(run.seed), run.steps // 10
    for step in range(1, run.steps + 1):
        rate = run.rate * min(1.0, step / warmup)
        report, _ = engine.step([text.drawn(generator)], proceed, step=step, learning_rate=rate)
        losses.append(report.loss)
        if not report.finite:
            break
    trained = time.process_time() - started
    found = {
        "train": fmean(losses[-warmup:]),
        "validation": mean_loss(engine, text.fixed(VALIDATED)),
        "seconds_a_step": trained / len(losses),
    }
    return {**asdict(run), **found, **curvature(config, engine, text), "losses": losses}


def curvature(config: RunConfig, engine: TrainEngine, text: Text) -> dict[str, float]:
    tensors = {p.name: p.tensor.detach().clone() for p in engine.to_save() if p.kind == WEIGHT}
    batches = text.fixed(LOOKED_AT)
    hessian = LossHessian(config.model, config.data, "fp32", Weights(tensors), engine.mesh, batches)
    start_P = random_normal(hessian.zeros(), torch.Generator().manual_seed(0))
    try:
        found: Eigenvalue = largest_eigenvalues(hessian, start_P, SEARCH)[0]
    except CheckpointError:  # which weights that have diverged are told by
        return {"sharpness": float("nan"), "residual": float("nan")}
    return {"sharpness": found.value, "residual": found.residual}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """It yields lines of Markdown."""
    yield "| learning rate | rho | seed | train | validation | largest eigenvalue | residual | s a step |"
    yield "| --: | --: | --: | --: | --: | --: | --: | --: |"
    for row in sorted(rows, key=lambda row: (row["rate"], row["seed"], row["rho"])):
        losses = f"{row['train']:.3f} | {row['validation']:.3f}"
        sharpness = f"{row['sharpness']:.4g} | {row['residual']:.2g}" if isfinite(row["sharpness"]) else "|"
        yield (
            f"| {row['rate']:g} | {row['rho']:g} | {row['seed']} | {losses} | {sharpness} "
            f"| {row['seconds_a_step']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="file that is read as bytes")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--rhos", nargs="+", type=float, default=RHOS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of sharp_language_models.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "sharp_language_models.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {tuple(row[name] for name in ("rate", "rho", "seed", "steps")) for row in rows}
    text = Text(options.text)
    mesh = ParallelMesh.create(make_config(Run(1e-3, 0.0, 1, 10)).parallel)
    runs = [
        Run(rate, rho, seed, options.steps)
        for seed in options.seeds
        for rate in options.rates
        for rho in options.rhos
    ]
    for run in runs:
        if (run.rate, run.rho, run.seed, run.steps) not in done:
            rows.append(train(run, text, mesh))
            with file.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(
                json.dumps({name: value for name, value in rows[-1].items() if name != "losses"}), flush=True
            )
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
