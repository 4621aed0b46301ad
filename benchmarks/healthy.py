"""Does the watchdog leave twenty healthy runs alone, which differ in seed, depth, method, schedule, learning rate?

    python benchmarks/healthy.py

Each is configs/gpt/rehearsal.toml with changes, on one rank, with the watchdog acting. Counted are alarms (which may
be of one signal alone and have no consequence), withheld updates and rollbacks. Runs that have ended are not run again.
"""

import itertools
import json
from collections import Counter

import torch
from rehearsals import first_alarms, make_config, make_parser, one_run, prepare_data, print_table

from parallel.config import ParallelConfig
from parallel.mesh import ParallelMesh
from pretrain.ledger.record import Kind

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


def main() -> None:
    parser = make_parser(__doc__, "healthy")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare_data(options.data)
    rows, mesh = [], ParallelMesh.create(ParallelConfig())
    for number, (method, schedule) in enumerate(itertools.product(METHODS, SCHEDULES)):
        depth, rate = DEPTHS[number % len(DEPTHS)], LEARNING_RATES[number // 2 % len(LEARNING_RATES)]
        config = make_config(
            options,
            f"healthy-{number:02d}",
            options.first_seed + number,
            *METHODS[method],
            f"model.num_layers={depth}",
            f"schedule.kind={schedule}",
            f"optimizer.learning_rate={rate}",
            f"run.steps={options.steps}",
        )
        run = one_run(config, mesh, None)
        kinds = Counter(record.kind for record in run.records)
        alarms = ", ".join(f"{name} at {step}" for name, step in first_alarms(run, since=0).items())
        rows.append(
            {
                "run": f"{method}, {depth} layers, {schedule}, {rate:g}",
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
