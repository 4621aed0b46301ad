"""The watchdog's detectors, and the rules of others, on synthetic losses by the hundred thousand and on real runs.

    python benchmarks/watchdog_replay.py                              everything, a quarter of an hour on one core
    python benchmarks/watchdog_replay.py --steps 60000 --windows 512  a first look
    python benchmarks/watchdog_replay.py --metrics runs/*/metrics.jsonl

Healthy runs have 20,000 steps each, warmup included, and every signal that a real step has, at the steps that have
it. Their noise is heavy-tailed and correlated (`NOISES`), with outlying batches in a thousandth of the steps; losses
fall as 2 + 8 (t / 200)^-1/2 nats. What is counted are alarms that begin, and steps that a rule of others acts on.

Faults come upon the loss alone, at step 3,000 or 15,000 of twenty healthy runs.
"""

import argparse
import copy
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from spike_rules import RULES, Rule

from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.step import StepReport
from pretrain.watchdog.detectors import Detectors

Array = npt.NDArray[np.float64]

RUN = 20_000
"""Steps of a synthetic run."""
WARMUP = 200
ONSETS = (3_000, 15_000)
FOLLOWED = 400
"""Steps after the onset of a fault in which alarms count."""
SEEDS = 20
CONFIG = Path(__file__).parents[1] / "configs/gpt/demo.toml"
PEAK = 1e-3


@dataclass(frozen=True)
class Noise:
    """How healthy signals scatter."""

    correlation: float = 0.2
    """Between neighbouring steps."""
    freedom: float = 4.0
    """Degrees of freedom of Student's t."""
    trend: float = 0.0
    """Growth of the gradient norm and variance, and of the loss's fall, in 10,000 steps."""
    cosine: bool = False
    """The learning rate falls; else it stays."""


NOISES = {
    "t4, correlation 0.2": Noise(),
    "t2.5": Noise(freedom=2.5),
    "correlation 0.5": Noise(correlation=0.5),
    "trends": Noise(trend=0.5),
    "cosine decay": Noise(cosine=True),
}


def scatter(noise: Noise, steps: int, generator: np.random.Generator) -> Array:
    """Correlated values of unit variance with outliers of 8 to 20."""
    scale = math.sqrt((1 - noise.correlation**2) * (noise.freedom - 2) / noise.freedom)
    innovations = (scale * generator.standard_t(noise.freedom, steps)).tolist()
    values = np.array(
        list(itertools.accumulate(innovations, lambda last, new: noise.correlation * last + new))
    )
    outliers = generator.random(steps) < 1e-3
    values[outliers] += generator.uniform(8, 20, int(outliers.sum()))
    return values


def waves(steps: int, length: float, generator: np.random.Generator) -> Array:
    """Values of unit variance that stay correlated for about `length` steps."""
    keep = math.exp(-1 / length)
    innovations = (math.sqrt(1 - keep**2) * generator.standard_normal(steps)).tolist()
    return np.array(list(itertools.accumulate(innovations, lambda last, new: keep * last + new)))


@dataclass(frozen=True)
class Course:
    """Signals of one run, by step."""

    learning_rate: Array
    loss: Array
    gradient_norm: Array
    measures: dict[str, Array]
    every: dict[str, int]

    def reports(self) -> Iterator[StepReport]:
        names = list(self.measures)
        columns = zip(*(column.tolist() for column in self.measures.values()), strict=True)
        rows = zip(
            self.learning_rate.tolist(), self.loss.tolist(), self.gradient_norm.tolist(), columns, strict=True
        )
        for step, (learning_rate, loss, norm, values) in enumerate(rows, 1):
            measures = {n: v for n, v in zip(names, values, strict=True) if step % self.every[n] == 0}
            yield StepReport(step, loss, norm, learning_rate, samples=1, tokens=1, measures=measures)


def healthy_losses(noise: Noise, steps: int, generator: np.random.Generator) -> Array:
    t = np.arange(1, steps + 1)
    fall = np.exp(-noise.trend * 0.3 * t / 10_000)
    return (2 + 8 * (t / 200) ** -0.5) * fall * np.exp(0.01 * scatter(noise, steps, generator))


def healthy_course(noise: Noise, steps: int, seed: int) -> Course:
    """All signals; TEV grows by 0.4 learning rates an update at first and 0.01 in the end, in waves of 30 steps."""
    generator = np.random.default_rng(seed)
    t = np.arange(1, steps + 1)
    decay = 0.55 + 0.45 * np.cos(np.pi * t / steps) if noise.cosine else np.ones(steps)
    learning_rate = PEAK * np.minimum(t / WARMUP, 1) * decay
    growth = np.exp(noise.trend * t / 10_000)

    def noisy(level: Array | float, spread: float) -> Array:
        return level * np.exp(spread * scatter(noise, steps, generator))

    pace = 0.4 / (1 + t / 100) + 0.01 + 0.015 * waves(steps, 30, generator)
    tev = 0.02 + np.concatenate(([0.0], np.cumsum(learning_rate * pace)[:-1]))
    measures = {
        "tev_mean": tev,
        "tev_std": 1e-3 + 0.6 * np.abs(tev - 0.02),
        "tev_max": 1.6 * tev,
        "attention_entropy_min": noisy(0.5 + 2 * np.exp(-t / 3000), 0.06),
        "attention_entropy_mean": noisy(2 + 2 * np.exp(-t / 3000), 0.015),
        "update_rms": noisy(0.22 * np.concatenate(([PEAK / WARMUP], learning_rate[:-1])), 0.02),
        "update_rms/embedding": noisy(0.22 * np.concatenate(([PEAK / WARMUP], learning_rate[:-1])), 0.08),
        "gradient_variance": noisy(growth * (1 + 5 * np.exp(-t / 1000)), 0.15),
    }
    every = {name: 1 if name.startswith("tev") else 10 for name in measures}
    loss = healthy_losses(noise, steps, generator)
    norm = noisy(growth * (0.5 + np.exp(-t / 1000)), 0.08)
    return Course(learning_rate, loss, norm, measures, every)


class Ours:
    """The detectors with the loss alone, as a rule."""

    name = "this watchdog"

    def __init__(self, config: RunConfig) -> None:
        self._detectors = Detectors(config)

    def look(self, step: int, loss: float) -> bool:
        finite = math.isfinite(loss)
        report = StepReport(step, loss, 1.0 if finite else math.nan, PEAK, 1, 1, finite=finite)
        return any(alarm.signal == "loss" for alarm in self._detectors.look(report).alarms)


@dataclass
class Tally:
    """What was said about some reports; alarms and suspicions count when they begin."""

    steps: int = 0
    seconds: float = 0.0
    alarms: Counter[str] = field(default_factory=Counter)
    suspicions: Counter[str] = field(default_factory=Counter)
    stories: list[str] = field(default_factory=list)

    def replay(self, detectors: Detectors, reports: Iterable[StepReport], run: str = "") -> None:
        standing: set[str] = set()
        suspected: set[str] = set()
        for report in reports:
            begin = time.process_time()
            findings = detectors.look(report)
            self.seconds += time.process_time() - begin
            self.steps += 1
            self.stories += [f"{run} {a}" for a in findings.alarms if a.signal not in standing]
            new = {alarm.signal for alarm in findings.alarms}
            self.alarms.update(new - standing)
            doubtful = new | {alarm.signal for alarm in findings.suspects}
            self.suspicions.update(doubtful - suspected)
            standing, suspected = new, doubtful


def replay_healthy(options: argparse.Namespace) -> list[dict[str, object]]:
    """False alarms of all signals, by noise and window."""
    rows = []
    for (name, noise), window in itertools.product(NOISES.items(), options.windows):
        tally = Tally()
        for seed in seeds(options):
            course = healthy_course(noise, min(RUN, options.steps), seed)
            tally.replay(
                Detectors(make_config(window)), course.reports(), f"{name}, window {window}, seed {seed}:"
            )
        rows.append(
            {
                "noise": name,
                "window": window,
                "steps": tally.steps,
                "alarms": tally.alarms.total(),
                "per 100k": 1e5 * tally.alarms.total() / tally.steps,
                "by signal": dict(tally.alarms),
                "suspicions": dict(tally.suspicions),
                "us/step": round(1e6 * tally.seconds / tally.steps, 1),
            }
        )
        print_row(rows[-1])
        print(*tally.stories[:10], sep="\n", flush=True)
    return rows


def replay_rules(options: argparse.Namespace) -> list[dict[str, object]]:
    """Steps of healthy runs that each rule acts on; ours counts every step of an alarm too."""
    rows = []
    for name, noise in NOISES.items():
        fired: Counter[str] = Counter({rule.name: 0 for rule in make_rules(options)})
        for seed in seeds(options):
            losses = healthy_losses(noise, RUN, np.random.default_rng(seed)).tolist()
            for rule in make_rules(options):
                fired[rule.name] += sum(itertools.starmap(rule.look, enumerate(losses, 1)))
        steps = RUN * math.ceil(options.steps / RUN)
        rows.append({"noise": name, "steps": steps, **{key: 1e5 * n / steps for key, n in fired.items()}})
        print_row(rows[-1])
    return rows


def seeds(options: argparse.Namespace) -> range:
    """Of the healthy runs; noises share them, so they differ in kind and not in luck."""
    return range(options.first_seed, options.first_seed + math.ceil(options.steps / RUN))


def make_rules(options: argparse.Namespace) -> list[Rule]:
    return [Ours(make_config(options.windows[0])), *(rule() for rule in RULES)]


def make_config(window: int) -> RunConfig:
    return load_config(
        CONFIG,
        [
            f"watchdog.window={window}",
            f"schedule.warmup_steps={WARMUP}",
            f"optimizer.learning_rate={PEAK}",
            "probes.every_steps=10",
        ],
    )


FAULTS: dict[str, Callable[[Array], Array]] = {
    "+0.5 % a step": lambda t: 1.005**t,
    "+2 % for good": lambda t: np.full_like(t, 1.02),
    "+1 % for good": lambda t: np.full_like(t, 1.01),
    "+0.02 % a step": lambda t: 1 + 2e-4 * t,
    "x 3, then decaying": lambda t: 1 + 2 * np.exp(-t / 50),
    "one step x 3": lambda t: np.where(t == 0, 3.0, 1.0),
    "one NaN": lambda t: np.where(t == 0, np.nan, 1.0),
    "none": np.ones_like,
}
"""Factors on the loss, by steps since the onset."""


def measure_delays(options: argparse.Namespace) -> list[dict[str, object]]:
    """Runs in which each rule fires after the onset, the median delay, and on how many steps (median)."""
    rows = []
    for onset in ONSETS:
        fired: dict[tuple[str, str], list[list[int]]] = {}
        for seed in range(SEEDS):
            follow_faults(onset, seed, fired, options)
        for fault in FAULTS:
            row: dict[str, object] = {"onset": onset, "fault": fault}
            row |= {rule.name: describe(fired[fault, rule.name]) for rule in make_rules(options)}
            rows.append(row)
            print_row(row)
    return rows


def follow_faults(
    onset: int, seed: int, fired: dict[tuple[str, str], list[list[int]]], options: argparse.Namespace
) -> None:
    """Every rule on one run up to the onset, and from there on with each fault."""
    losses = healthy_losses(Noise(), onset + FOLLOWED, np.random.default_rng(1000 + seed))
    for rule in make_rules(options):
        for step, loss in enumerate(losses[:onset].tolist(), 1):
            rule.look(step, loss)
        for fault, factor in FAULTS.items():
            faulty = losses[onset:] * factor(np.arange(FOLLOWED, dtype=np.float64))
            twin = copy.deepcopy(rule)
            steps = [after for after, loss in enumerate(faulty.tolist(), 1) if twin.look(onset + after, loss)]
            fired.setdefault((fault, rule.name), []).append(steps)


def describe(runs: Sequence[Sequence[int]]) -> str:
    """`runs with an alarm/runs median delay (median steps it fires on)`; delay 1 is the first step of the fault."""
    hits = [steps for steps in runs if steps]
    if not hits:
        return f"0/{len(runs)}"
    delay, count = np.median([steps[0] for steps in hits]), np.median([len(steps) for steps in hits])
    return f"{len(hits)}/{len(runs)} {delay:.1f} ({count:.0f})"


def replay_real(options: argparse.Namespace) -> list[dict[str, object]]:
    """Alarms on runs that were really trained, from their metrics.jsonl and config.toml."""
    rows = []
    for path, window in itertools.product(options.metrics, options.windows):
        tally = Tally()
        config = load_config(path.parent / "config.toml", [f"watchdog.window={window}"])
        tally.replay(Detectors(config), read_reports(path), f"{config.run.name}, window {window}:")
        suspicions = dict(tally.suspicions)
        rows.append(
            {"run": config.run.name, "window": window, "steps": tally.steps, "alarms": dict(tally.alarms)}
            | {"suspicions": suspicions, "us/step": round(1e6 * tally.seconds / tally.steps, 1)}
        )
        print_row(rows[-1])
        print(*tally.stories[:10], sep="\n", flush=True)
    return rows


def read_reports(path: Path) -> Iterator[StepReport]:
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "loss" in row:
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            loss, norm = row["loss"] or math.nan, row["gradient_norm"] or math.nan
            finite = math.isfinite(loss) and math.isfinite(norm)
            yield StepReport(
                row["step"], loss, norm, row["learning_rate"], 1, 1, finite=finite, measures=numbers
            )


def print_row(row: dict[str, object]) -> None:
    print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300_000, help="healthy steps by noise and window")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="the detectors were designed on seeds 0 to 29"
    )
    parser.add_argument("--windows", type=int, nargs="+", default=[512, 64])
    parser.add_argument("--metrics", type=Path, nargs="*", help="only these real runs")
    parser.add_argument("--parts", nargs="+", default=["healthy", "rules", "delays"])
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    options = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], list[dict[str, object]]]] = {
        "healthy": replay_healthy,
        "rules": replay_rules,
        "delays": measure_delays,
    }
    chosen = {"real": replay_real} if options.metrics else {name: parts[name] for name in options.parts}
    figures = {}
    for name, part in chosen.items():
        print(f"\n{name}: {(part.__doc__ or '').splitlines()[0]}")
        figures[name] = part(options)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
