"""Kills runs with SIGKILL at random moments, by phase, and compares what comes of them with an undisturbed twin.

    python benchmarks/kills.py --kills 200                   one rank
    python benchmarks/kills.py --kills 40 --ranks 2          one of two ranks is killed
    python benchmarks/kills.py --kills 20 --phase seal       one phase alone

A life is a run that is killed up to three times and then left in peace. The process that is to die arms a timer of the
kernel when it enters the phase, and disarms it when it leaves: the moment is random, the phase is not. Which moments
there are was timed in the twin. A phase that ends too early is entered again; a run that ends before its kill counts as
a miss.

After each life its losses, validation losses, weights, optimizer, data position and random state must be the twin's to
the bit, the last checkpoint certified, and nothing left behind: no temporary, no torn or half-deleted checkpoint, no
heartbeat. Prepared data must be the twin's, byte for byte.
"""

import argparse
import ctypes
import hashlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch

from data_pipeline.__main__ import main as prepare_command
from data_pipeline.preparing.workspace import Workspace
from data_pipeline.text import prepare as text
from parallel.mesh import ParallelMesh, is_peer_loss
from pretrain.checkpoint import conversion, transfer, writer
from pretrain.checkpoint.lifecycle import candidates
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.commands.__main__ import main as model_command
from pretrain.commands.convert import run as convert_command
from pretrain.config.run import RunConfig
from pretrain.errors import PeerLost, SurefootError
from pretrain.fault_injection.faults import make_fault
from pretrain.fault_injection.plan import FaultPlan
from pretrain.recovery.rollback import RollbackExecutor
from pretrain.run import train
from pretrain.run_folder import CHECKPOINTS, CONFIG, HEARTBEATS, LEDGER, METRICS, RUN_LOCK
from pretrain.runtime.signals import StopSignals
from pretrain.step import TrainState
from pretrain.trainer import Trainer

STEPS, EVERY = 48, 6
FAULT_AFTER = 8
"""Steps of a session after which a bit flips, where the kill is to hit a rollback."""
KILLS_IN_A_LIFE = 3
PHASES: Mapping[str, tuple[tuple[Any, str], ...]] = {
    "prepare": ((text, "make_once"), (Workspace, "publish")),
    "first save": ((CheckpointWriter, "begin"), (transfer, "flush")),
    "seal": ((CheckpointWriter, "finish"),),
    "certify": ((writer, "read_again"), (CheckpointWriter, "finish_certify")),
    "rollback": ((RollbackExecutor, "roll_back"),),
    "conversion": (
        (conversion, "write_shares"),
        (conversion, "described"),
        (convert_command, "append_conversion"),
    ),
}
"""Phase -> the calls that it takes place in."""
ALONE = ("prepare", "conversion")
"""Phases of programs of one process."""
KEYS = ("loss", "gradient_norm", "learning_rate", "validation_loss")

# DeepSpeed finds out, once for all processes, which of its operators could be compiled here.
COMPATIBLE_OPERATORS = deepspeed.ops.__compatible_ops__


class KernelTimer:
    """It is a timer of the kernel that kills this process, whatever that is doing."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        event = (ctypes.c_int * 16)()  # struct sigevent: a value of 8 bytes, the signal, SIGEV_SIGNAL = 0
        event[2] = signal.SIGKILL
        self._timer = ctypes.c_void_p()
        if self._libc.timer_create(time.CLOCK_MONOTONIC, event, ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), "timer_create")

    def set(self, seconds: float) -> None:
        """Arm it; 0 disarms it."""
        nanoseconds = round(seconds * 1e9)
        value = (ctypes.c_long * 4)(0, 0, *divmod(nanoseconds, 10**9))
        if self._libc.timer_settime(self._timer, 0, value, None):
            raise OSError(ctypes.get_errno(), "timer_settime")


@dataclass(frozen=True)
class Kill:
    """It says in which phase, in which of its calls, and after how much of it a process dies."""

    phase: str
    call: int
    occurrence: int
    """From which on it may happen."""
    seconds: float
    rank: int


def marked(kill: Kill | None, rank: int, durations: dict[str, list[float]]) -> None:
    """Have the calls of all phases timed, and those of the kill's phase armed, in this process."""
    timer, seen = KernelTimer(), Counter[str]()

    def timed(key: str, armed: bool, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **options: Any) -> Any:
            seen[key] += 1
            if armed and kill and seen[key] >= kill.occurrence:
                timer.set(max(kill.seconds, 1e-9))
            started = time.monotonic()
            try:
                return call(*arguments, **options)
            finally:
                durations.setdefault(key, []).append(time.monotonic() - started)
                if armed:
                    timer.set(0)

        return inner

    for phase, calls in PHASES.items():
        for number, (owner, name) in enumerate(calls):
            armed = kill is not None and (kill.phase, kill.call, kill.rank) == (phase, number, rank)
            setattr(owner, name, timed(f"{phase} {number}", armed, getattr(owner, name)))


def planted(steps: int) -> None:
    """Have a bit of a weight flip after so many steps of this session."""
    resume = Trainer.resume

    def inner(trainer: Trainer, state: TrainState) -> TrainState:
        state = resume(trainer, state)
        plan = FaultPlan("exponent_flip", state.attempt + steps, 1)
        trainer.fault = make_fault(plan, trainer.config, trainer.mesh)
        return state

    Trainer.resume = inner  # type: ignore[method-assign]


def rank_of_run(config: RunConfig) -> int:
    """Train, in the world that the environment describes, as `python -m pretrain` does; returns the exit code."""
    torch.set_num_threads(1)
    try:
        with StopSignals() as signals, ExitStack() as stack:
            train(config, ParallelMesh.create(config.parallel), signals, stack)
        return 0
    except SurefootError as error:
        traceback.print_exc()
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        return PeerLost.exit_code if is_peer_loss(error) else 1


def fork(work: Callable[[], int], log: Path) -> int:
    """Do something in a copy of this process, which has imported everything; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


@dataclass
class Bench:
    """It has the folder of all lives, the twins that they are compared with, and what was seen so far."""

    folder: Path
    ranks: int
    draw: random.Random
    phases: tuple[str, ...]
    durations: dict[str, list[float]] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def sessions(self, works: list[Callable[[], int]], kill: Kill | None, log: Path) -> list[int]:
        """Run a process for each rank; returns their exit codes, negative for a signal."""
        times = log.with_suffix(".times")

        def work(rank: int) -> int:
            durations: dict[str, list[float]] = {}
            marked(kill, rank, durations)
            code = works[rank]()
            if rank == 0:
                times.write_text(json.dumps(durations))
            return code

        pids = [fork(partial(work, rank), log) for rank in range(len(works))]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if times.exists():
            for key, seconds in json.loads(times.read_text()).items():
                self.durations.setdefault(key, []).extend(seconds)
            times.unlink()
        return codes

    def run(self, life: Path, kill: Kill | None, *, fault: bool = False) -> list[int]:
        """Start or resume the run of a life."""
        config, port = make_config(life, self.folder / "data", self.ranks), free_port()

        def rank_of(rank: int) -> int:
            if fault:
                planted(FAULT_AFTER)
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            )
            os.environ.update(WORLD_SIZE=str(self.ranks), LOCAL_SIZE=str(self.ranks))
            return rank_of_run(config)

        works = [partial(rank_of, rank) for rank in range(self.ranks)]
        return self.sessions(works, kill, life.with_suffix(".log"))

    def prepare(self, life: Path, kill: Kill | None, seed: int = 0) -> list[int]:
        """Prepare the data of a life."""
        words = [
            "text",
            str(self.folder / "raw"),
            "--out",
            str(life / "data"),
            "--seed",
            str(seed),
            "--overwrite",
        ]
        words += [
            "--workers",
            "1",
            "--vocabulary-size",
            "300",
            "--sequence-length",
            "32",
            "--validation-fraction",
            "0.2",
        ]
        return self.sessions([lambda: prepare_command(words)], kill, life.with_suffix(".log"))

    def convert(self, life: Path, kill: Kill | None) -> list[int]:
        """Convert the twin's run for another layout, into `converted` of a life."""
        words = ["convert", str(self.folder / "twin" / "run"), "--out", str(life / "converted")]
        words += ["--tensor", "2", "--zero-stage", "0", "--data", "1", "--set", "data.micro_batch_size=12"]
        return self.sessions([lambda: model_command(words)], kill, life.with_suffix(".log"))

    def twins(self) -> None:
        """Make what all lives are compared with, and time the phases."""
        write_corpus(self.folder / "raw")
        expect(self.prepare(self.folder, None) == [0], "the data cannot be prepared")
        twin, fallen = self.folder / "twin", self.folder / "fallen"
        expect(not any(self.run(twin, None)), "the twin has failed; see twin.log")
        expect(
            not any(self.run(fallen, None, fault=True)), "the run with a rollback has failed; see fallen.log"
        )
        expect("rollback 0" in self.durations, "there was no rollback")
        expect(self.convert(self.folder, None) == [0], "the twin cannot be converted")
        self.problems += self.compared(fallen)

    def next_kill(self, phases: Sequence[str]) -> Kill | None:
        """It returns a kill in that of these phases that has had the fewest."""
        if not phases:
            return None
        phase = min(phases, key=lambda p: (self.killed[p], self.draw.random()))
        call = self.draw.randrange(len(PHASES[phase]))
        occurrence = self.draw.randint(1, 3) if phase in ("seal", "certify") else 1
        longest = sorted(self.durations[f"{phase} {call}"])[len(self.durations[f"{phase} {call}"]) // 2]
        rank = 0 if phase in ALONE else self.draw.randrange(self.ranks)
        return Kill(phase, call, occurrence, self.draw.random() * longest, rank)

    def count(self, kill: Kill, codes: list[int]) -> None:
        """It notes whether the kill has struck, and whether the other ranks have ended as they should."""
        if -signal.SIGKILL in codes:
            self.killed[kill.phase] += 1
            others = [code for code in codes if code not in (-signal.SIGKILL, PeerLost.exit_code)]
        else:
            self.missed[kill.phase] += 1
            others = [code for code in codes if code]
        if others:
            self.problems.append(f"{kill}: exit codes {codes}")

    def live(self, number: int, left: int) -> None:
        """A run is killed, resumed and killed again, and comes to the twin's end."""
        life, used, codes = self.folder / f"life{number:04d}", set[str](), [1]
        for _ in range(min(left, self.draw.randint(1, KILLS_IN_A_LIFE))):
            once = used & {"rollback"}  # a bit flips once in a life
            kill = self.next_kill([p for p in self.phases if p not in ALONE and p not in once])
            if kill is None or codes == [0] * self.ranks:
                break
            used.add(kill.phase)
            codes = self.run(life, kill, fault=kill.phase == "rollback")
            self.count(kill, codes)
        if any(codes):
            codes = self.run(life, None)
        found = self.compared(life) if not any(codes) else [f"{life}: it does not come to its end: {codes}"]
        self.close(life, found)

    def live_prepare(self, number: int, left: int) -> None:
        """Data is prepared, sometimes in the place of other data, killed and prepared again."""
        life, codes = self.folder / f"life{number:04d}", [1]
        life.mkdir()
        if self.draw.random() < 0.5:
            expect(self.prepare(life, None, seed=1) == [0], "other data cannot be prepared")
        for _ in range(min(left, self.draw.randint(1, KILLS_IN_A_LIFE))):
            kill = self.next_kill(["prepare"])
            if kill is None or codes == [0]:
                break
            codes = self.prepare(life, kill)
            self.count(kill, codes)
            if (life / "data" / "prepare.json").exists() and len(tree(life / "data")) != len(
                tree(self.folder / "data")
            ):
                self.problems.append(f"{life}: data that is incomplete has a record")
        codes = self.prepare(life, None)
        found = [] if codes == [0] else [f"{life}: exit codes {codes}"]
        if tree(life / "data") != tree(self.folder / "data"):
            found.append(f"{life}: the data is not the twin's")
        found += [f"{life}: {path.name} was left" for path in life.iterdir() if path.name != "data"]
        self.close(life, found)

    def live_convert(self, number: int, left: int) -> None:
        """A run is converted, killed and converted again."""
        life, codes = self.folder / f"life{number:04d}", [1]
        life.mkdir()
        for _ in range(min(left, self.draw.randint(1, KILLS_IN_A_LIFE))):
            kill = self.next_kill(["conversion"])
            if kill is None or codes == [0]:
                break
            codes = self.convert(life, kill)
            self.count(kill, codes)
            if codes != [0] and (life / "converted").exists():
                self.problems.append(f"{life}: a conversion that was killed looks whole")
        if codes != [0]:
            codes = self.convert(life, None)
        found = [] if codes == [0] else [f"{life}: exit codes {codes}"]
        ours, theirs = (place / "converted" / CHECKPOINTS for place in (life, self.folder))
        (tag,) = candidates(theirs).certified
        if list(candidates(ours).certified) != [tag] or digests(ours / str(tag)) != digests(
            theirs / str(tag)
        ):
            found.append(f"{life}: the conversion is not the twin's")
        found += [f"{life}: {path.name} was left" for path in life.iterdir() if path.name != "converted"]
        self.close(life, found)

    def close(self, life: Path, found: list[str]) -> None:
        """Keep what is wrong, for people to look at, and nothing else."""
        self.problems += found
        if not found:
            remove(life)
            life.with_suffix(".log").unlink(missing_ok=True)

    def compared(self, life: Path) -> list[str]:
        """It returns where a life differs from the twin, and what it has left behind."""
        ours, theirs = life / "run", self.folder / "twin" / "run"
        problems = [f"{life}: {key} differs" for key in KEYS if course(ours, key) != course(theirs, key)]
        found = candidates(ours / CHECKPOINTS)
        twin = candidates(theirs / CHECKPOINTS).sealed[0]
        if [tag.step for tag in found.sealed[:1]] != [twin.step]:
            return [*problems, f"{life}: the last checkpoint is {found.sealed[:1]}"]
        last = found.sealed[0]
        if digests(ours / CHECKPOINTS / str(last)) != digests(theirs / CHECKPOINTS / str(twin)):
            problems.append(f"{life}: {last} differs from the twin's")
        if last not in found.certified or found.torn:
            problems.append(
                f"{life}: certified {[*map(str, found.certified)]}, torn {[*map(str, found.torn)]}"
            )
        return problems + [f"{life}: {name} was left" for name in left_behind(ours)]


def left_behind(run: Path) -> list[str]:
    """It returns what should not be in the folder of a run that has ended."""
    files = {CONFIG, METRICS, LEDGER, RUN_LOCK}
    folders = {CHECKPOINTS, HEARTBEATS}
    found = [path.name for path in run.iterdir() if path.name not in files | folders]
    found += [f"{HEARTBEATS}/{path.name}" for path in (run / HEARTBEATS).glob("*")]
    found += [str(path.relative_to(run)) for path in run.rglob(".*")]
    return found


def course(run: Path, key: str) -> dict[int, float]:
    """It returns step -> value; the last row of a step counts."""
    rows = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def digests(checkpoint: Path) -> dict[str, str]:
    """It returns file -> digest of what it holds; how often the run has been taken back is left out."""
    found = {}
    for path in sorted(checkpoint.glob("rank_*.pt")):
        content = torch.load(path, weights_only=False)
        del content["watchdog"]
        digest = hashlib.sha256()
        for piece in pieces(content):
            digest.update(piece)
        found[path.name] = digest.hexdigest()
    states = {path.name: hashlib.sha256(path.read_bytes()) for path in checkpoint.glob("state_*")}
    return found | {name: digest.hexdigest() for name, digest in states.items()}


def pieces(value: Any) -> Iterator[bytes]:
    """It yields the bytes of all that is in a nested structure, and where it is."""
    if isinstance(value, torch.Tensor):
        yield str((value.dtype, value.shape)).encode()
        yield value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield repr(key).encode()
            yield from pieces(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield b","
            yield from pieces(inner)
    else:
        yield repr(value if isinstance(value, str | int | float | bool | None) else vars(value)).encode()


def tree(folder: Path) -> dict[str, str]:
    """It returns file -> digest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make_config(folder: Path, data: Path, ranks: int) -> RunConfig:
    """It configures a run in miniature that saves, certifies and takes snapshots all the time."""
    return RunConfig.model_validate(
        {
            "run": {"name": "run", "folder": str(folder), "steps": STEPS, "seed": 7},
            "model": {
                "num_layers": 2,
                "hidden_size": 16,
                "vocabulary_size": 300,
                "dropout": 0.1,
                "attention": {"num_heads": 4},
            },
            "parallel": {"zero_stage": 1, "timeout_seconds": 60, "control_timeout_seconds": 60},
            "data": {
                "sources": [{"path": str(data)}],
                "sequence_length": 32,
                "micro_batch_size": 12 // ranks,
                "global_batch_size": 12,
            },
            "optimizer": {"learning_rate": 1e-2},
            "checkpoint": {"every_steps": EVERY, "keep_last": 3},
            "evaluation": {"every_steps": 12, "samples": 12},
            "journal": {"console": "none", "tensorboard": False},
            # Verdicts come from what is planted alone: no drift is ever enough.
            "watchdog": {"threshold": 1e9, "horizon": 2, "memory_every_steps": 4, "replays": 100},
        }
    )


def write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True)
    words = [
        "the",
        "run",
        "keeps",
        "its",
        "feet",
        "while",
        "loss",
        "falls",
        "and",
        "every",
        "rank",
        "agrees",
        "on",
        "what",
        "it",
        "saw",
    ]
    draw = random.Random(0)
    for document in range(60):
        (folder / f"{document}.txt").write_text(" ".join(draw.choice(words) for _ in range(60)) + ".\n")


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"kills: {otherwise}")


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """It gives an empty folder; one that was not asked for by name is removed."""
    if given:
        given.mkdir(parents=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        yield Path(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", choices=[*PHASES], action="append", help="this phase alone (all)")
    parser.add_argument("--folder", type=Path, help="new folder, kept (a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    phases = tuple(options.phase or PHASES)
    started = time.monotonic()
    with work_folder(options.folder) as folder:
        bench = Bench(folder, options.ranks, random.Random(options.seed), phases)
        bench.twins()
        number = 0
        while (left := options.kills - bench.killed.total()) > 0:
            number += 1
            fewest = min(phases, key=lambda phase: bench.killed[phase])
            lives = {"prepare": bench.live_prepare, "conversion": bench.live_convert}
            lives.get(fewest, bench.live)(number, left)
            print(
                f"\r{bench.killed.total()} kills, {number} lives, {len(bench.problems)} problems",
                end="",
                flush=True,
            )
    print(f"\n{'phase':12} {'kills':>6} {'missed':>7}")
    for phase in phases:
        print(f"{phase:12} {bench.killed[phase]:6} {bench.missed[phase]:7}  {'#' * bench.killed[phase]}")
    for problem in bench.problems:
        print(problem)
    seconds = time.monotonic() - started
    print(f"{bench.killed.total()} kills in {number} lives, {len(bench.problems)} problems, {seconds:.0f} s")
    if options.json:
        result = {"killed": bench.killed, "missed": bench.missed, "problems": bench.problems, "lives": number}
        options.json.write_text(json.dumps({**result, "seconds": seconds}, indent=1))
    return bool(bench.problems)


if __name__ == "__main__":
    sys.exit(main())
