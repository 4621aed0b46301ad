"""Planted faults: what the watchdog notices and does, and what a run comes to with it and without.

    python benchmarks/watchdog.py                                        all faults, seed 0
    python benchmarks/watchdog.py --seeds 0 1 2 --faults poisoned_samples

Each fault is planted in configs/gpt/rehearsal.toml on one rank, three ways: not at all (the twin), under the watchdog,
and under one that only tells (`dry_run`), which as far as the weights go is a run without (non-finite updates are
withheld there too). The rules of other systems (spike_rules.py) look at the losses of that last run.

Columns: steps from the first one with the fault to the first alarm or withheld update; what was done; tokens undone,
samples skipped; final validation loss relative to the twin's, with the watchdog and without; for each rule the steps
until it first acts after the fault began, or `early` where it had acted on a healthy step before; the first alarm of
each signal in the run that was only told. Runs that have ended are not run again.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from rehearsals import first_alarms, make_config, make_parser, one_run, prepare_data, print_table
from spike_rules import RULES

from launch.inspect import Run
from parallel.config import ParallelConfig
from parallel.mesh import ParallelMesh
from pretrain.fault_injection.plan import FAULTS
from pretrain.ledger.record import Kind

START = 400
ONE_REPLICA = tuple(name for name in FAULTS if name != "replica_flip")
"""A single rank has no second replica to differ from."""
SIGNS = (Kind.ALARM, Kind.VETO, Kind.ROLLBACK_INTENT)
DEEDS = {Kind.VETO: "veto", Kind.ROLLBACK_INTENT: "rollback", Kind.STOPPED: "stop"}


def losses(run: Run, folder: Path) -> list[float]:
    """Of every attempt, in order."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [math.nan if row["loss"] is None else row["loss"] for row in rows if "loss" in row]


def delays_of_rules(course: list[float]) -> Iterator[str]:
    for make in RULES:
        rule = make()
        acted = [step for step, loss in enumerate(course, start=1) if rule.look(step, loss)]
        late = [step - START for step in acted if step >= START]
        yield "early" if acted and acted[0] < START else str(late[0]) if late else "-"


def row(fault: str, seed: int, runs: dict[str, Run], course: list[float]) -> dict[str, str]:
    guarded = runs["guarded"]
    signs = [r.attempt - START for r in guarded.records if r.kind in SIGNS and r.attempt >= START]
    deeds = [word for kind, word in DEEDS.items() for r in guarded.records if r.kind is kind]
    lost = guarded.lost
    tokens = guarded.tokens(lost.wasted_steps)

    def relative(name: str) -> str:
        ours, twin = runs[name].last("validation_loss"), runs["clean"].last("validation_loss")
        return f"{ours / twin - 1:+.2%}" if ours and twin else "none"

    return {
        "fault": fault,
        "seed": str(seed),
        "delay": str(signs[0]) if signs else "-",
        "done": ", ".join(f"{deeds.count(word)} {word}" for word in dict.fromkeys(deeds)) or "nothing",
        "undone": f"{tokens:,}",
        "skipped": f"{lost.skipped_samples:,}",
        "loss": relative("guarded"),
        "without": relative("told"),
        **dict(zip((make().name for make in RULES), delays_of_rules(course), strict=True)),
        "first alarms": ", ".join(
            f"{name} {step}" for name, step in first_alarms(runs["told"], START).items()
        ),
    }


def main() -> None:
    parser = make_parser(__doc__, "watchdog")
    parser.add_argument("--faults", nargs="+", choices=ONE_REPLICA, default=ONE_REPLICA, metavar="FAULT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepare_data(options.data)
    mesh = ParallelMesh.create(ParallelConfig())
    rows = []
    for seed in options.seeds:
        clean = one_run(make_config(options, f"clean-seed{seed}", seed), mesh, None)
        for fault in options.faults:
            plan = f"{fault}@{START}"
            guarded, told = (
                make_config(options, f"{fault}-{word}-seed{seed}", seed, f"watchdog.dry_run={dry_run}")
                for word, dry_run in (("guarded", "false"), ("told", "true"))
            )
            runs = {
                "clean": clean,
                "guarded": one_run(guarded, mesh, plan),
                "told": one_run(told, mesh, plan),
            }
            rows.append(row(fault, seed, runs, losses(runs["told"], told.run_folder)))
            print(json.dumps(rows[-1]), flush=True)
    print_table(rows)
    (options.out / "watchdog.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
