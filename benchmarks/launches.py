"""What a training step asks of torch, against depth: operators, launches, solver calls and host reads.

    python benchmarks/launches.py                                every arm at 4, 12, 24 and 48 layers
    python benchmarks/launches.py --arms sigma --depths 4 8      some of them
    python benchmarks/launches.py --arms sigma --by-name         which operators a layer adds

On a GPU an operator costs a launch, a solver call several, and a host read waits for all that was launched before;
they are counted here on the CPU, where they are the same. `a layer` is the slope from the second depth on: first
layers are a group of their own now and then. An arm adds what it has beyond the base at the same depth.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from methods import NO_PROBES, Arm, make_batches, make_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.ledger.history import RunHistory
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.watchdog import Watchdog

DEPTHS = (4, 12, 24, 48)
SIGMA = {"reparametrization": "sigma"}
EVERY, LOOK, OFF = 2, 4, 3
"""Probes look at every second step; numbers of a step at which all do, not for the first time, and of one
where few do."""


@dataclass(frozen=True)
class Watched:
    """It is an arm, and the step of it that counts."""

    arm: Arm = field(default_factory=Arm)
    step: int = OFF
    watchdog: bool = False


PROBES = {"probes": {**dict.fromkeys(NO_PROBES, True), "every_steps": EVERY}}
ARMS = {
    "base": Watched(),
    "sigma": Watched(Arm({"model": SIGMA})),
    "MLRA": Watched(Arm({"model": {"attention": {"kind": "mlra", "num_heads": 4}}})),
    "MLRA, sigma": Watched(Arm({"model": {**SIGMA, "attention": {"kind": "mlra", "num_heads": 4}}})),
    "probes, looking": Watched(Arm(PROBES), LOOK),
    "probes, not looking": Watched(Arm(PROBES)),
    "sigma, probes looking": Watched(Arm({"model": SIGMA, **PROBES}), LOOK),
    "watchdog": Watched(Arm({"watchdog": {"enabled": True}}), watchdog=True),
    "SAM": Watched(Arm({"optimizer": {"learning_rate": 1e-4, "sharpness_aware": {"rho": 0.05}}})),
    "SAM, sigma": Watched(
        Arm({"model": SIGMA, "optimizer": {"learning_rate": 1e-4, "sharpness_aware": {"rho": 0.05}}})
    ),
}
HOST_READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")
SOLVERS = ("linalg", "cholesky", "triangular")


class Operators(TorchDispatchMode):
    """It counts what torch dispatches, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.launched: Counter[str] = Counter()
        """Those that compute something: no views, and nothing that merely takes memory."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = str(function)
        self.all[name] += 1
        if not (function.is_view or "empty" in name or "_local_scalar_dense" in name):
            self.launched[name] += 1
        return function(*arguments, **(options or {}))

    @property
    def solver_calls(self) -> int:
        """They decompose matrices; a norm is no solver, though torch has it among them."""
        return sum(
            count
            for name, count in self.launched.items()
            if any(solver in name for solver in SOLVERS) and "norm" not in name
        )


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """It counts the calls that bring a tensor's numbers to the host."""
    reads: Counter[str] = Counter()

    def counting(name: str, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            reads[name] += 1
            return method(*arguments, **options)

        return call

    with ExitStack() as stack:
        for name in HOST_READS:
            stack.enter_context(patch.object(Tensor, name, counting(name, getattr(Tensor, name))))
        yield reads


@dataclass(frozen=True)
class Costs:
    """They are what one step asks for."""

    operators: int
    launches: int
    solver_calls: int
    host_reads: int
    by_name: Mapping[str, int]

    def per_layer(self, shallow: "Costs", layers: int) -> "Costs":
        """It returns how much more a layer asks for than in a model that has `layers` fewer."""
        names = self.by_name.keys() | shallow.by_name.keys()
        return Costs(
            *((ours - theirs) / layers for ours, theirs in zip(self.numbers, shallow.numbers, strict=True)),
            by_name={n: (self.by_name.get(n, 0) - shallow.by_name.get(n, 0)) / layers for n in names},
        )

    def less(self, base: "Costs") -> "Costs":
        """It returns what this adds to a base."""
        return self.per_layer(base, 1)

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """They are the four sums."""
        return self.operators, self.launches, self.solver_calls, self.host_reads


def configuration(watched: Watched, depth: int, hidden: int) -> RunConfig:
    """It returns a small model of `depth` layers."""
    config = make_config("tiny", "fp32", watched.arm).model_dump(mode="json")
    config["model"].update(num_layers=depth, hidden_size=hidden, vocabulary_size=128)
    config["data"].update(sequence_length=16, micro_batch_size=2, global_batch_size=4)
    return RunConfig.model_validate(config)


def costs(watched: Watched, depth: int, hidden: int = 64, mesh: ParallelMesh | None = None) -> Costs:
    """It takes some steps of an arm, of two micro-batches each, and counts in the last one."""
    config = configuration(watched, depth, hidden)
    engine = assemble_engine(
        config, plan(config, 1), mesh or ParallelMesh.create(config.parallel), detect_kernels()
    )
    watchdog, history, state = Watchdog(config), RunHistory(), TrainState()

    def judge(report: StepReport) -> Verdict:
        if watched.watchdog:
            return watchdog.judge(report, state, history, (0, config.data.global_batch_size))
        return Verdict(Action.PROCEED)

    take = partial(engine.step, judge=judge, learning_rate=1e-4)
    for step in range(1, watched.step):
        take(make_batches(config, step)[:2], step=step)
    batches = make_batches(config, watched.step)[:2]
    with Operators() as operators, counted_reads() as reads:
        take(batches, step=watched.step)
    return Costs(
        operators.all.total(),
        operators.launched.total(),
        operators.solver_calls,
        reads.total(),
        operators.all,
    )


def table(found: Mapping[str, Mapping[int, Costs]], depths: Sequence[int]) -> Iterator[str]:
    """It yields the lines of the table: what a layer adds to the base, and what each arm asks for at the last depth."""
    last, before = depths[-1], depths[0]
    yield f"{'':24} {'added by a layer':^44} | {f'a step of {last} layers':^36}"
    heads = ("operators", "launches", "solvers", "reads")
    yield (
        f"{'arm':24} " + "".join(f"{head:>11}" for head in heads) + " | " + "".join(f"{h:>10}" for h in heads)
    )
    for name, by_depth in found.items():
        slope = by_depth[last].per_layer(by_depth[before], last - before)
        if name != "base":
            base = found["base"]
            slope = slope.less(base[last].per_layer(base[before], last - before))
        numbers = "".join(f"{number:>11.2f}" for number in slope.numbers)
        yield f"{name:24} {numbers} | " + "".join(f"{n:>10}" for n in by_depth[last].numbers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--by-name", action="store_true", help="also which operators a layer adds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/launches.json"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    mesh = ParallelMesh.create(configuration(ARMS["base"], 1, options.hidden).parallel)
    found = {
        name: {depth: costs(ARMS[name], depth, options.hidden, mesh) for depth in options.depths}
        for name in dict.fromkeys(["base", *options.arms])
    }
    print(*table(found, options.depths), sep="\n")
    for name, by_depth in found.items() if options.by_name else ():
        first, last = options.depths[0], options.depths[-1]
        slope = by_depth[last].per_layer(by_depth[first], last - first)
        base = found["base"][last].per_layer(found["base"][first], last - first)
        added = (slope if name == "base" else slope.less(base)).by_name
        print(f"\n{name}:", *(f"  {n:8.2f} {op}" for op, n in Counter(added).most_common() if n), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, default=vars, indent=1))


if __name__ == "__main__":
    main()
