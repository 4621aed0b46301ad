"""The toy problem of SAMformer, whose optimum is known: what attention, SAM and sigmaReparam make of a linear map.

    python benchmarks/toy_forecasting.py                    all arms, five seeds
    python benchmarks/toy_forecasting.py --seeds 1 --epochs 5

Y = X W + noise (arXiv 2402.10198, section 2; sizes and noise of the released code): X (7, 512) standard normal, W
(512, 96) standard normal, noise of variance 1; 10,000 windows to learn from, 2,000 to test. So no forecast is better
than 1, the least-squares fit of W is at 1 + 512 / (70,000 - 513) = 1.0074, and no forecast at all at 513.

Arms are SAMformer's one block without instance normalization, batches of 32, Adam at 1e-3 with a cosine that begins
again every 5 epochs: as it is (`transformer`); with the attention as it was drawn (`random`); under sigmaReparam
(`sigma`); with SAM, rho = 0.7 (`sam`); and one linear map (`linear`). At the looks, on the same 64 train windows:
`entropy` of the attention of the channels (log 7 = 1.946 is attention to all alike, 0 to one alone), `identity`, the
mean weight of a channel to itself (1/7 is uniform, 1 the identity), and `sharpness`, the largest eigenvalue of the
Hessian of the loss (the largest Ritz value of 16 products), with its residual. `test_entropy` and `test_identity` are
those of all test windows. `gap` is the test loss less the train loss of the same weights.

Of attention as it was drawn the best linear map behind it is known, too: `optimum` are the train and test loss of the
least-squares fit to what the block makes of the windows.

Writes toy.jsonl, a line a run with all its looks; runs that are there do not run again. Prints a table.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.batches import Batch
from data_pipeline.series.batch import SeriesBatch
from data_pipeline.series.scaler import SCALER, Scaler
from parallel.eigenvalues import Eigenvalue, Search, largest_eigenvalues, random_normal
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.engine.engine import TrainEngine
from pretrain.inference.hessian import LossHessian
from pretrain.models.attention import AttentionCore
from pretrain.models.named import WEIGHT
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, Verdict
from pretrain.tasks.forecasting.ends import HorizonHead

CHANNELS, LOOKBACK, HORIZON = 7, 512, 96
TRAIN, TEST, LOOKED_AT, BATCH = 10_000, 2_000, 64, 32
SEARCH = Search(count=1, vectors=17, tolerance=0.0, products=16)
PEAK, FLOOR, CYCLE = 1e-3, 1e-6, 5
LOOKS = (1, 2, 5, 10, 20, 40, 60, 80, 100)
ARMS: Mapping[str, tuple[dict[str, Any], float]] = {
    "transformer": ({}, 0.0),
    "random": ({"frozen_attention": True}, 0.0),
    "random, glorot": ({"frozen_attention": True, "init": "glorot"}, 0.0),
    "sigma": ({"reparametrization": "sigma"}, 0.0),
    "sam": ({}, 0.7),
    "linear": ({"kind": "linear"}, 0.0),
}
"""Changes of the model, and rho."""
UNSCALED = Scaler(
    columns=tuple(map(str, range(CHANNELS))),
    means=(0.0,) * CHANNELS,
    deviations=(1.0,) * CHANNELS,
    step_seconds=None,
)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Problem:
    """It is one draw of the problem."""

    x_NDL: Tensor
    y_NDH: Tensor

    @classmethod
    def drawn(cls, seed: int) -> "Problem":
        generator = torch.Generator().manual_seed(seed)
        x_NDL = torch.randn(TRAIN + TEST, CHANNELS, LOOKBACK, generator=generator)
        weights_LH = torch.randn(LOOKBACK, HORIZON, generator=generator)
        noise_NDH = torch.randn(TRAIN + TEST, CHANNELS, HORIZON, generator=generator)
        return cls(x_NDL, x_NDL @ weights_LH + noise_NDH)

    def batch(self, numbers: slice | Tensor) -> SeriesBatch:
        x_BDL = self.x_NDL[numbers]
        return SeriesBatch(x_BDL, self.y_NDH[numbers], torch.ones(len(x_BDL)))

    def batches(self, first: int, stop: int) -> list[SeriesBatch]:
        return [self.batch(slice(at, min(at + 500, stop))) for at in range(first, stop, 500)]

    def least_squares(self) -> float:
        """It returns the test loss of the best linear map of the train windows, in closed form."""
        inputs = self.x_NDL[:TRAIN].reshape(-1, LOOKBACK).double()
        outputs = self.y_NDH[:TRAIN].reshape(-1, HORIZON).double()
        weights_LH = torch.linalg.solve(inputs.T @ inputs, inputs.T @ outputs)
        error = self.x_NDL[TRAIN:].double() @ weights_LH - self.y_NDH[TRAIN:].double()
        return error.square().mean().item()


@dataclass(frozen=True)
class Weights:
    """They are the tensors of a model in training, by name."""

    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def make_config(arm: str, seed: int) -> RunConfig:
    changes, rho = ARMS[arm]
    plain = {} if changes.get("kind") == "linear" else {"kind": "samformer", "instance_norm": False}
    return RunConfig.model_validate(
        {
            "run": {"name": "toy", "steps": 1_000_000, "seed": seed},
            "model": {**plain, **changes},
            "data": {
                "kind": "series",
                "sources": [{"path": "none"}],
                "channels": CHANNELS,
                "lookback": LOOKBACK,
                "horizon": HORIZON,
                "micro_batch_size": BATCH,
                "global_batch_size": BATCH,
            },
            "optimizer": {
                "learning_rate": PEAK,
                "weight_decay": 0.0,
                "beta2": 0.999,
                "gradient_clipping": 0.0,
                "sharpness_aware": {"rho": rho},
            },
            "parallel": {"zero_stage": 0},
            "precision": {"dtype": "fp32"},
            "probes": {"every_steps": 1_000_000_000},
            "watchdog": {"enabled": False},
        }
    )


class Toy:
    """It trains one arm."""

    def __init__(self, arm: str, seed: int, mesh: ParallelMesh) -> None:
        self.config = make_config(arm, seed)
        self.problem = Problem.drawn(seed)
        self._mesh = mesh
        layout = plan(self.config, 1)
        self._engine = assemble_engine(
            self.config, layout, mesh, detect_kernels(), {SCALER: UNSCALED.content}
        )
        self._step = 0

    def epoch(self, number: int, generator: torch.Generator) -> float:
        """It returns the mean loss of the steps."""
        rate = FLOOR + (PEAK - FLOOR) * (1 + cos(pi * (number % CYCLE) / CYCLE)) / 2
        losses = []
        for numbers in torch.randperm(TRAIN, generator=generator).split(BATCH):
            self._step += 1
            report, _ = self._engine.step(
                [self.problem.batch(numbers)], proceed, step=self._step, learning_rate=rate
            )
            losses.append(report.loss)
        return fmean(losses)

    def look(self) -> dict[str, float]:
        train, test = (mean_loss(self._engine, part) for part in (self._train(), self._test()))
        found = {"train": train, "test": test, "gap": test - train}
        if self.config.model.kind == "samformer":
            found |= attention(self._engine.module, self._engine, self.problem.batch(slice(0, LOOKED_AT)))
            of_test = attention(self._engine.module, self._engine, self.problem.batch(slice(TRAIN, None)))
            found |= {f"test_{name}": value for name, value in of_test.items()}
        eigenvalue = self._sharpness()
        return {**found, "sharpness": eigenvalue.value, "residual": eigenvalue.residual}

    def optimum(self) -> dict[str, float]:
        """It returns the losses of the linear map that fits best what reaches the head now, in closed form."""
        seen: list[Tensor] = []
        (head,) = [part for part in self._engine.module.modules() if isinstance(part, HorizonHead)]
        handle = head.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].reshape(-1, LOOKBACK))
        )
        mean_loss(self._engine, self.problem.batches(0, TRAIN + TEST))
        handle.remove()
        inputs = torch.cat(seen).double().split((TRAIN * CHANNELS, TEST * CHANNELS))
        outputs = self.problem.y_NDH.reshape(-1, HORIZON).double().split((TRAIN * CHANNELS, TEST * CHANNELS))
        weights_LH = torch.linalg.solve(inputs[0].T @ inputs[0], inputs[0].T @ outputs[0])
        losses = [(x @ weights_LH - y).square().mean().item() for x, y in zip(inputs, outputs, strict=True)]
        return dict(zip(("train", "test"), losses, strict=True))

    def _train(self) -> list[SeriesBatch]:
        return self.problem.batches(0, TEST)

    def _test(self) -> list[SeriesBatch]:
        return self.problem.batches(TRAIN, TRAIN + TEST)

    def _sharpness(self) -> Eigenvalue:
        tensors = {p.name: p.tensor.detach().clone() for p in self._engine.to_save() if p.kind == WEIGHT}
        batch = self.problem.batch(slice(0, LOOKED_AT))
        config = self.config
        hessian = LossHessian(config.model, config.data, "fp32", Weights(tensors), self._mesh, [batch])
        start_P = random_normal(hessian.zeros(), torch.Generator().manual_seed(0))
        return largest_eigenvalues(hessian, start_P, SEARCH)[0]


def proceed(report: StepReport) -> Verdict:
    return Verdict(Action.PROCEED)


def mean_loss(engine: TrainEngine, batches: Sequence[Batch]) -> float:
    parts = [engine.evaluate([batch]) for batch in batches]
    return sum(part.loss * part.targets for part in parts) / sum(part.targets for part in parts)


def attention(module: nn.Module, engine: TrainEngine, batch: SeriesBatch) -> dict[str, float]:
    """It returns entropy and mean diagonal of the attention of channels to each other."""
    found: dict[str, float] = {}

    def see(core: nn.Module, inputs: tuple[Any, ...]) -> None:
        q_BHDK, k_BHDK = inputs[0].double(), inputs[1].double()
        logits = q_BHDK @ k_BHDK.transpose(-1, -2) * q_BHDK.shape[-1] ** -0.5
        weights, logs = logits.softmax(-1), logits.log_softmax(-1)
        found["entropy"] = -(weights * logs).sum(-1).mean().item()
        found["identity"] = weights.diagonal(dim1=-2, dim2=-1).mean().item()

    (core,) = [part for part in module.modules() if isinstance(part, AttentionCore)]
    handle = core.register_forward_pre_hook(see)
    engine.evaluate([batch])
    handle.remove()
    return found


def train(arm: str, seed: int, epochs: int, mesh: ParallelMesh) -> dict[str, Any]:
    started = time.process_time()
    toy = Toy(arm, seed, mesh)
    generator = torch.Generator().manual_seed(seed)
    looks = [{"epoch": 0, **toy.look()}]
    optimum = toy.optimum() if ARMS[arm][0].get("frozen_attention") else None
    for number in range(epochs):
        loss = toy.epoch(number, generator)
        if number + 1 in LOOKS or number + 1 == epochs:
            looks.append({"epoch": number + 1, "epoch_loss": loss, **toy.look()})
    least_squares = toy.problem.least_squares()
    return {
        "arm": arm, "seed": seed, "epochs": epochs, "least_squares": least_squares, "optimum": optimum,
        "cpu_seconds": time.process_time() - started, "looks": looks,
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """It yields lines of Markdown: the last look of each arm, mean and deviation over the seeds."""
    columns = ("train", "test", "gap", "entropy", "identity", "sharpness")
    yield f"| arm | seeds | {' | '.join(columns)} |"
    yield f"| --- | --: | {' | '.join('--:' for _ in columns)} |"
    by_arm: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_arm[row["arm"]].append(row)
    for arm, found in by_arm.items():
        last = [row["looks"][-1] for row in found]
        cells = [spread([look[name] for look in last if name in look]) for name in columns]
        yield f"| {arm} | {len(found)} | {' | '.join(cells)} |"
    exact = {row["seed"]: row["least_squares"] for row in rows}
    yield f"| least squares | {len(exact)} |  | {spread(list(exact.values()))} |  |  |  |  |"


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.4g} +- {pstdev(values):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of toy.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "toy.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["arm"], row["seed"]) for row in rows}
    mesh = ParallelMesh.create(make_config(options.arms[0], 0).parallel)
    for seed in options.seeds:
        for arm in options.arms:
            if (arm, seed) not in done:
                rows.append(train(arm, seed, options.epochs, mesh))
                with file.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]["looks"][-1]), flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
