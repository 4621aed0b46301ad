"""A rehearsal makes two runs from one configuration and compares them; the ranks are stand-ins."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.paths import escaped
from launch import process
from launch import rehearse as module
from launch.cli import main
from launch.command import Command, LaunchOptions, inline_toml
from launch.outcome import Ending
from launch.rehearse import Rehearsal, rows
from pretrain.fault_injection.plan import FaultPlan
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.history import Rollback
from pretrain.ledger.record import Kind, Record
from pretrain.run_folder import LEDGER
from pretrain.step import Alarm, Remedy

DEMO = str(Path(__file__).parents[2] / "configs" / "gpt" / "demo.toml")
ALARM = Alarm("loss", "high", 168, 15.5, 14.0)
ROLLBACK = Rollback(175, 175, Remedy.SKIP, 168, 128, None, ((2000, 4000),), 1.0, "loss high")
START = Record(Kind.RUN_START, 0, 0, 1, {"config_digest": "", "layout": "", "versions": {}, "host": "here"})
TROUBLE = [
    Record(Kind.SUSPECT, 171, 171, 1, {"signals": ["loss"]}),
    Record(Kind.ALARM, 175, 175, 1, {"alarms": [vars(ALARM)]}),
    ROLLBACK.intent(2),
    Record(Kind.ROLLBACK_DONE, 128, 175, 2, {"seconds": 0.5, "tier": "memory", "proof": ""}),
]
DONE = Record(Kind.DONE, 250, 297, 2)


class StandIn:
    """It leaves behind what ranks would, and remembers how it was called."""

    def __init__(self, codes: tuple[int, int] = (0, 0), before: tuple[Record, ...] = ()) -> None:
        self.codes = list(codes)
        self.before = before
        self.calls: list[tuple[Command, Path]] = []

    def __call__(self, command: Command, options: LaunchOptions, run_folder: Path) -> Ending:
        self.calls.append((command, run_folder))
        faulted = "--fault" in command.argv
        run_folder.mkdir(parents=True)
        ledger = LedgerFile(run_folder / LEDGER)
        for record in [START, *(self.before if faulted else ()), *(TROUBLE if faulted else []), DONE]:
            ledger.append(record)
        ledger.close()
        lines = [{"step": 250, "loss": 4.0}, {"step": 250, "validation_loss": 4.04 if faulted else 4.0}]
        (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Ending(self.codes.pop(0), False, 0)


def call(
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *arguments: str,
    fault: str = "poisoned_samples",
) -> int:
    """It runs `surefoot rehearse` on the demo with stand-ins, and returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "run", stand_in)
    return main(["rehearse", DEMO, "--fault", fault, "--num-accelerators", "2", *arguments])


@pytest.mark.parametrize("name", ["two words", 'it\'s "so"', "$HOME", "a\\b", "~", "é 😀"])
def test_runs_lie_where_the_configuration_says(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = StandIn()
    folder = inline_toml(escaped(name))
    assert call(stand_in, monkeypatch, tmp_path, "--set", f"run.folder={folder}") == 0
    assert [path for _, path in stand_in.calls][:1] == [Path(name, "rehearsals", "demo-1", "clean")]


def test_two_runs_that_differ_in_the_fault_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = StandIn()
    assert call(stand_in, monkeypatch, tmp_path, "--set", "run.seed=5") == 0
    (clean, first), (faulted, second) = stand_in.calls
    assert (first, second) == (
        Path("runs/rehearsals/demo-1/clean"),
        Path("runs/rehearsals/demo-1/poisoned_samples"),
    )
    ours, theirs = list(faulted.argv), list(clean.argv)
    assert ours[-2:] == ["--fault", "poisoned_samples@167+40"]
    changed = [
        (a, b)
        for a, b in zip(ours, theirs, strict=False)
        if a != b and not {"master_port", "as-read"} & set(re.split("--|=", a))
    ]
    assert changed == [("run.name=poisoned_samples", "run.name=clean")]
    assert "run.seed=5" in theirs
    assert call(StandIn(), monkeypatch, tmp_path) == 0
    assert sorted(path.name for path in Path("runs/rehearsals").iterdir()) == ["demo-1", "demo-2"]


def test_a_rehearsal_that_was_stopped_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ranks say that the same command resumes them."""
    assert call(StandIn((75, 0)), monkeypatch, tmp_path) == 75
    assert (
        "the same command begins a new one; this one lies in runs/rehearsals/demo-1"
        in capsys.readouterr().err
    )


def test_what_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(StandIn(), monkeypatch, tmp_path) == 0
    out = capsys.readouterr().out
    for told in (
        "step 167 to 206: targets",
        "4 steps after the first with the fault, at step 171: suspicion: loss",
        "1 rollback",
        "47 steps; 2,000 samples skipped",
        "4.0400 with the fault, 4.0000 without: +1.00%",
        "0 in the twin and before the fault",
        "step 175, attempt 175: alarm: loss high since step 168 (CUSUM 15.5, threshold 14.0)",
    ):
        assert told in out


def test_a_document_for_scripts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = Record(Kind.VETO, 12, 12, 1, {"reason": "cap", "draws": [0, 16]})
    assert call(StandIn(before=(early,)), monkeypatch, tmp_path, "--json", fault="garbage_batch@171") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fault"] == "garbage_batch@171+1"
    assert (document["delay"], document["false_alarms"]) == (0, 1)
    assert document["relative_loss"] == pytest.approx(0.01)
    assert document["faulted"]["lost"]["skipped_samples"] == 2000
    assert document["clean"]["rollbacks"] == []


@pytest.mark.parametrize(
    ("codes", "code", "runs"), [((2, 0), 2, 1), ((0, 5), 0, 2), ((0, 6), 6, 2), ((5, 0), 5, 1)]
)
def test_a_stop_that_the_fault_has_caused_is_an_answer(
    codes: tuple[int, int], code: int, runs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = StandIn(codes)
    assert call(stand_in, monkeypatch, tmp_path) == code
    assert len(stand_in.calls) == runs


@pytest.mark.parametrize("fault", ["nan", "nan_gradient@0", "nan_gradient@251", "@5"])
def test_nothing_starts_for_a_fault_that_cannot_be(
    fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = StandIn()
    assert call(stand_in, monkeypatch, tmp_path, fault=fault) == 2
    assert stand_in.calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_nobody_noticed() -> None:
    quiet: Any = module.Run(Path("runs/quiet"), None, (START, DONE), (), [])
    told = dict(rows(Rehearsal(FaultPlan("garbage_batch", 5, 1), quiet, quiet)))
    assert told["noticed"] == "no"
    assert told["done"] == "nothing"
    assert told["validation loss"] == "none with the fault, none without"


@pytest.mark.parametrize(("fault", "told"), [("poisoned_samples@60", True), ("nan_gradient@60", False)])
def test_a_drift_that_comes_before_there_is_a_baseline_is_told_of_beforehand(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    told: bool,
) -> None:
    """The demo looks for drift from step 111 on; a gradient that is NaN needs no baseline."""
    assert call(StandIn(), monkeypatch, tmp_path, fault=fault) == 0
    assert ("drift is looked for from step 111 on" in capsys.readouterr().err) is told
    assert call(StandIn(), monkeypatch, tmp_path, fault="poisoned_samples@120") == 0
    assert "drift is looked for" not in capsys.readouterr().err
