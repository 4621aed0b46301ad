"""Does the watchdog leave twenty healthy runs alone, which differ in seed, depth, method, schedule, learning rate?

    python benchmarks/healthy.py

Each is configs/gpt/rehearsal.toml with changes, on one rank, with the watchdog acting. Counted are alarms (which may
be of one signal alone and have no consequence), withheld updates and rollbacks. Runs that have ended are not run again.
"""

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

import torch
from watchdog import first_alarms, one_run, prepare_data, print_table

from parallel.mesh import ParallelMesh
from pretrain.config import RunConfig
from pretrain.config_loader import load_config
from pretrain.watchdog.record import Kind

CONFIG = Path(__file__).parents[1] / "configs/gpt/rehearsal.toml"
METHODS = {
    "dense": (),
    "dense, post-LN": ("model.norm_placement=post",),
    "sigmaReparam": ("model.reparametrization=sigma", "model.norm_placement=none"),
    "MLRA": ("model.attention.kind=mlra",),
    "dense, untied": ("model.tied_embeddings=false",),
}
SCHEDULES = ("cosine", "constant", "wsd", "linear")
DEPTHS = (2, 3, 4)
LEARNING_RATES = (5e-4, 1e-3, 2e-3)


def make_config(
    options: argparse.Namespace, number: int, method: str, schedule: str
) -> tuple[RunConfig, str]:
    depth, rate = DEPTHS[number % len(DEPTHS)], LEARNING_RATES[number // 2 % len(LEARNING_RATES)]
    config = load_config(
        CONFIG,
        [
            *METHODS[method],
            f"model.num_layers={depth}",
            f"schedule.kind={schedule}",
            f"optimizer.learning_rate={rate}",
            f"run.folder={json.dumps(str(options.out))}",
            f"run.name=healthy-{number:02d}",
            f"run.seed={options.first_seed + number}",
            f"run.steps={options.steps}",
            f"data.sources=[{{path={json.dumps(str(options.data))}}}]",
            "journal.console=none",
            "journal.tensorboard=false",
        ],
    )
    return config, f"{method}, {depth} layers, {schedule}, {rate:g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="made where it is not there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/healthy"), help="folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare_data(options.data)
    rows, mesh = [], None
    for number, (method, schedule) in enumerate(itertools.product(METHODS, SCHEDULES)):
        config, description = make_config(options, number, method, schedule)
        mesh = mesh or ParallelMesh.create(config.parallel)
        run = one_run(config, mesh, None)
        kinds = Counter(record.kind for record in run.records)
        alarms = ", ".join(f"{name} at {step}" for name, step in first_alarms(run, since=0).items())
        rows.append(
            {
                "run": description,
                "seed": str(config.run.seed),
                "validation loss": f"{run.last('validation_loss') or float('nan'):.3f}",
                "alarms": alarms or "none",
                "withheld": str(kinds[Kind.VETO]),
                "rollbacks": str(kinds[Kind.ROLLBACK_INTENT]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    print_table(rows)
    (options.out / "healthy.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
