"""Runs that diverge by themselves: what becomes of them without the watchdog and with it, and which signal tells first.

    python benchmarks/divergence.py                          all cases, seed 1
    python benchmarks/divergence.py --seeds 1 2 3 --cases "4 layers, LR 0.02"

Nothing is planted. The cases are configs/gpt/rehearsal.toml made unsound: no normalisation, no gradient clipping, and a
learning rate that climbs to one that is too high and stays there. Each runs three times on one rank: without the
watchdog, under one that only tells (`dry_run`), for the first alarm of each signal, and under one that acts.
`maximum_loss` is 12 nats in both, which is 1.6 times the loss of a uniform guess. Runs that have ended are not run
again.
"""

import argparse
import json
import math

import torch
from rehearsals import first_alarms, make_config, make_parser, one_run, prepare_data, print_table
from watchdog import DEEDS

from launch.inspect import Run
from parallel.config import ParallelConfig
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.ledger.record import Kind

CASES = {
    "4 layers, LR 0.02": (4, 2e-2, 200, 0.95),
    "4 layers, LR 0.01, beta2 0.999": (4, 1e-2, 30, 0.999),
    "6 layers, LR 0.012, beta2 0.99": (6, 1.2e-2, 60, 0.99),
    "8 layers, LR 0.01": (8, 1e-2, 100, 0.95),
}
"""Blocks, learning rate, updates that it climbs for, beta2."""
STEPS = 600
COMMON = (
    "model.norm_placement=none",
    "schedule.kind=constant",
    "optimizer.gradient_clipping=0",
    f"run.steps={STEPS}",
    "checkpoint.every_steps=50",
    "evaluation.every_steps=100",
    "watchdog.window=64",
    "watchdog.margin=8",
    "watchdog.skip_after=8",
    "watchdog.skipped_fraction=1",
)
WAYS = {
    "without": ("watchdog.enabled=false",),
    "told": ("watchdog.dry_run=true", "watchdog.maximum_loss=12"),
    "guarded": ("watchdog.maximum_loss=12",),
}


def case_config(options: argparse.Namespace, case: str, seed: int, way: str) -> RunConfig:
    layers, rate, warmup, beta2 = CASES[case]
    name = "".join(c if c.isalnum() else "-" for c in f"{case} seed{seed} {way}")
    return make_config(
        options,
        name,
        seed,
        *COMMON,
        *WAYS[way],
        f"model.num_layers={layers}",
        f"optimizer.learning_rate={rate}",
        f"optimizer.beta2={beta2}",
        f"schedule.warmup_steps={warmup}",
    )


def outcome(run: Run) -> str:
    """How a run ended, in words."""
    value = run.last("validation_loss")
    loss = "none" if value is None else f"{value:.3f}" if value < 1e4 else f"{value:.1e}"
    stopped = next((r for r in run.records if r.kind is Kind.STOPPED), None)
    if stopped:
        return f"stopped at step {run.step}"
    return loss if run.step >= STEPS else f"{loss} at step {run.step}"


def worst(run: Run) -> str:
    """The highest training loss, and the step that had it."""
    rows = [
        row
        for row in map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    top = max(rows, key=lambda row: math.inf if row["loss"] is None else row["loss"])
    return f"{'not finite' if top['loss'] is None else format(top['loss'], '.3g')} at step {top['step']}"


def row(case: str, seed: int, runs: dict[str, Run]) -> dict[str, str]:
    guarded = runs["guarded"]
    deeds = [word for kind, word in DEEDS.items() for r in guarded.records if r.kind is kind]
    remedies = [str(r.fields["remedy"]) for r in guarded.records if r.kind is Kind.ROLLBACK_INTENT]
    alarms = first_alarms(runs["told"], since=0)
    return {
        "case": case,
        "seed": str(seed),
        "without: highest loss": worst(runs["without"]),
        "without: final": outcome(runs["without"]),
        "with: final": outcome(guarded),
        "vetoes": str(deeds.count("veto")),
        "rollbacks": ", ".join(remedies) or "none",
        "steps undone": str(guarded.lost.undone_steps),
        "first alarms": ", ".join(f"{name} {step}" for name, step in alarms.items()) or "none",
    }


def main() -> None:
    parser = make_parser(__doc__, "divergence")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare_data(options.data)
    rows = []
    mesh = ParallelMesh.create(ParallelConfig())
    for seed in options.seeds:
        for case in options.cases:
            runs = {way: one_run(case_config(options, case, seed, way), mesh, None) for way in WAYS}
            rows.append(row(case, seed, runs))
            print(json.dumps(rows[-1]), flush=True)
    print_table(rows)
    (options.out / "divergence.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
