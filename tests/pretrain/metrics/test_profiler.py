"""Steps that were asked for are profiled: each rank of the first replica writes a trace, and the first one tells where
a step goes."""

import gzip
import io
import json
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.distributed import run_distributed
from support.runs import metrics, run_config
from support.training import Layout, make_config, make_mesh, slow
from torch.autograd import DeviceType

from pretrain.errors import ConfigurationError
from pretrain.metrics.logger import SilentLogger
from pretrain.metrics.profiler import Profiler, memory_line
from pretrain.metrics.step_table import REST, Piece, cut, step_table
from pretrain.plan.plan import plan
from pretrain.plan.profiled_steps import ProfiledSteps
from pretrain.recovery.resume import Request
from pretrain.run import train
from pretrain.runtime.ranges import RANGE, ranged
from pretrain.runtime.signals import StopSignals

EVERYWHERE = {"step", "data", "forward", "backward", "methods", "probes", "judge", "update"}


class Told(SilentLogger):
    """It keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, step: int, text: str) -> None:
        self.events.append(f"{step}: {text}")


def trained(layout: Layout, folder: Path, corpus: Path, steps: ProfiledSteps | None) -> str:
    """It trains three steps on this rank, and returns what the console has shown."""
    config = run_config(
        layout,
        folder,
        corpus,
        run={"steps": 3},
        model={"reparametrization": "sigma"},
        journal={"console": "plain", "console_every_steps": 1},
        probes={"every_steps": 1},
    )
    with StopSignals() as signals, ExitStack() as stack, redirect_stdout(io.StringIO()) as console:
        train(config, make_mesh(config.parallel), signals, stack, request=Request(profile=steps))
    return console.getvalue()


def parts(folder: Path) -> set[str]:
    """It returns the named ranges of a trace."""
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    return {event["name"].removeprefix(RANGE) for event in events if event.get("name", "").startswith(RANGE)}


def test_a_profile_tells_where_a_step_goes_and_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    layout = Layout(accumulation=2)
    (plain,) = run_distributed(trained, 1, layout, tmp_path / "plain", corpus, None)
    (told,) = run_distributed(trained, 1, layout, tmp_path, corpus, ProfiledSteps(2, 3))
    assert metrics(tmp_path) == metrics(tmp_path / "plain")
    (folder,) = (tmp_path / "test/profiles").iterdir()
    assert folder.name == "step00000002-00000003_rank_00000"
    assert parts(folder) == EVERYWHERE | {"reduction"}
    table = (folder / "table.txt").read_text().splitlines()
    assert {line.split()[0] for line in table[1:]} == EVERYWHERE - {"step"} | {"reduction", "the"}
    assert all(line in told for line in table)
    assert sum(float(line.split()[-1].rstrip("%")) for line in table[1:]) == pytest.approx(100, abs=1)
    assert "step 2: peak memory" in plain
    assert not (tmp_path / "plain/test/profiles").exists()


@slow
def test_each_rank_of_the_first_replica_has_a_profile(corpus: Path, tmp_path: Path) -> None:
    layout = Layout(pipeline=2, data=2, accumulation=2)
    told, *others = run_distributed(trained, 4, layout, tmp_path, corpus, ProfiledSteps(3, 3))
    assert "profile of 3 in" in told
    assert not any(others)
    first, second = sorted((tmp_path / "test/profiles").iterdir())
    assert (first.name, second.name) == (
        "step00000003-00000003_rank_00000",
        "step00000003-00000003_rank_00002",
    )
    assert parts(first) == parts(second) == EVERYWHERE | {"stages", "reduction"}


def without_a_run(folder: Path, steps: ProfiledSteps, taken: range) -> list[str]:
    """It returns what a profiler tells of steps in which nothing happens."""
    config, told = make_config(Layout()), Told()
    profiler = Profiler(steps, folder, plan(config, 1), make_mesh(config.parallel), told)
    for step in taken:
        profiler.begin(step)
        with ranged("step"):
            torch.zeros(1) + 1
        profiler.end(step)
    return [event for event in told.events if "peak memory" not in event]


def test_a_profile_begins_late_replaces_an_earlier_one_and_may_fail(tmp_path: Path) -> None:
    without = partial(run_distributed, without_a_run, 1)
    ((over, *nothing),) = without(tmp_path, ProfiledSteps(2, 3), range(7, 9))
    assert over == "6: --profile 2-3: that is over; nothing is profiled"
    assert not nothing
    for _ in range(2):
        ((late, rest),) = without(tmp_path, ProfiledSteps(2, 4), range(3, 7))
        assert late.startswith("4: profile of 2-4 in")
        assert rest.startswith("4: the rest")
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == ["step00000003-00000004_rank_00000"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/profiles").symlink_to(tmp_path / "elsewhere")
    ((failed, *_),) = without(tmp_path / "other", ProfiledSteps(2, 2), range(1, 3))
    assert failed.startswith("2: the profile of rank 0 could not be written: ")
    assert "is a link" in failed
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("text", ["", "x", "0", "3-2", "8-11", "1-", "-1", "1.5", "1-2-3"])
def test_steps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--profile"):
        ProfiledSteps.parse(text, 10)


def test_steps_are_one_or_several() -> None:
    assert ProfiledSteps.parse("7", 10) == ProfiledSteps(7, 7)
    assert ProfiledSteps.parse("7-10", 10) == ProfiledSteps(7, 10)
    assert len(ProfiledSteps(7, 10)) == 4


def test_time_counts_once_for_the_innermost_part() -> None:
    step, other = Piece(0, 10, "step"), Piece(20, 21, "step")
    forward, probes, update = Piece(1, 5, "forward"), Piece(2, 3, "probes"), Piece(5, 9, "update")
    assert cut([probes, other, update, step, forward]) == [
        Piece(0, 1, "step"),
        Piece(1, 2, "forward"),
        probes,
        Piece(3, 5, "forward"),
        update,
        Piece(9, 10, "step"),
        other,
    ]


def event(name: str, start: float, end: float, **kernels: float) -> SimpleNamespace:
    """It is an event of the host as a profiler tells of it, in microseconds, and how long its kernels took."""
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CPU,
        time_range=SimpleNamespace(start=start, end=end),
        is_user_annotation=name.startswith(RANGE),
        kernels=[SimpleNamespace(name=kernel, duration=time) for kernel, time in kernels.items()],
    )


def test_kernels_count_to_the_part_in_which_they_were_launched() -> None:
    shadow = {f"{RANGE}backward": 700.0}
    events = [
        event(f"{RANGE}step", 0, 100),
        event(f"{RANGE}backward", 10, 60, **shadow),
        event("aten::mm", 20, 30, gemm=400.0),  # by a thread of the backward pass
        event("aten::add", 70, 75, add=50.0),
        event("aten::copy_", 200, 210, copy=1000.0),  # behind the step
        event(f"{RANGE}step", 300, 400),
    ]
    table = step_table(events)
    assert table.device == pytest.approx({"backward": 200e-6, REST: 25e-6})
    assert table.host == pytest.approx({"backward": 25e-6, REST: 75e-6})
    assert next(table.lines()) == "a step took 0.10 ms under the profiler, the device was busy for 0.23 ms"


def test_without_a_profiler_nothing_is_recorded() -> None:
    with torch.autograd.profiler.profile() as profiler:
        pass
    with ranged("step"):
        torch.zeros(1)
    assert not profiler.function_events


def test_memory_stands_beside_its_estimate() -> None:
    line = memory_line(3, 12 * 2**30, 10 * 2**30, on_host=False)
    assert line == "peak memory 12.0 GiB (rank 3); estimated were 10.0 GiB, 1.20 times as much was needed"
    assert "with Python and its libraries" in memory_line(0, 2**30, 2**20, on_host=True)
