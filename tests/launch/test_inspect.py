"""What `surefoot inspect` prints is complete, right and readable, and never an exception."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.light import run_and_list_heavy
from support.watchdog_run import BATCH, HEALTHY, Run, make_config

from launch.cli import main
from launch.history import lost
from pretrain.checkpoint.certificate import certify
from pretrain.checkpoint.lifecycle import condemn, quarantine
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.tag import Tag
from pretrain.config.loader import dump_config
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.history import Rollback, fold
from pretrain.ledger.record import Kind, Record
from pretrain.metrics.jsonl import MetricsFile
from pretrain.step import Remedy

ROOT = Path(__file__).parents[2]
START = Record(
    Kind.RUN_START, 0, 0, 1, {"config_digest": "", "layout": {"tensor": 2}, "versions": {}, "host": "node-7"}
)


@dataclass
class RunFolder:
    """It is the folder of a run; what the run goes through is written by hand."""

    path: Path
    run: Run

    def add(self, kind: Kind, **fields: Any) -> None:
        """It appends one more record, of the state that the run is in."""
        state = self.run.state
        ledger = LedgerFile(self.path / "ledger.jsonl")
        ledger.append(Record(kind, state.step, state.attempt, state.lineage, fields))
        ledger.close()

    def checkpoint(self, tag: str, *, certified: bool = False) -> None:
        """It makes a sealed checkpoint, with a certificate if it is to be certified."""
        folder = self.path / "checkpoints" / tag
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("{}")
        if certified:
            certify(folder, step=self.run.state.step, horizon=8)

    def document(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        """It returns what `--json` prints."""
        assert main(["inspect", str(self.path), "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    def printed(self, capsys: pytest.CaptureFixture[str]) -> str:
        """It returns what is printed for people."""
        assert main(["inspect", str(self.path)]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return str(captured.out)


@pytest.fixture
def troubled(tmp_path: Path) -> RunFolder:
    """It is a run with a veto, two alarms of loss and one of memory, at step 220 in its fourth lineage."""
    run = Run(make_config())
    run.steps([HEALTHY] * 99 + ["nonfinite"] + [HEALTHY] * 20)
    run.steps(["loss", *[HEALTHY] * 20, "loss", *[HEALTHY] * 60, "tev_mean?", "replicas"])
    run.steps([HEALTHY] * (220 - run.state.step))
    folder = tmp_path / "runs" / "troubled"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(dump_config(run.config))
    ledger = LedgerFile(folder / "ledger.jsonl")
    for record in (START, *run.records):
        ledger.append(record)
    ledger.close()
    metrics = MetricsFile(folder / "metrics.jsonl")
    metrics.append({"step": 200, "validation_loss": 3.5})
    metrics.append({"step": run.state.step, "loss": 3.25, "tokens": 128})
    metrics.close()
    return RunFolder(folder, run)


def test_the_story_for_scripts(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    story, run = troubled.document(capsys), troubled.run
    assert (story["step"], story["steps"], story["loss"], story["validation_loss"]) == (220, 2000, 3.25, 3.5)
    assert story["ending"] == {"state": "open", "code": None, "reason": ""}
    assert [rollback["remedy"] for rollback in story["rollbacks"]] == ["skip", "deeper", "replay"]
    assert [rollback["step"] for rollback in story["rollbacks"]] == [121, 131, 162]
    undone = sum(rollback["step"] - rollback["target_step"] for rollback in story["rollbacks"])
    assert story["lost"]["undone_steps"] == undone
    assert story["lost"]["undone_tokens"] == undone * BATCH * 32
    assert story["lost"]["skipped_samples"] == sum(end - start for start, end in run.history.skips)
    assert story["lost"]["withheld_updates"] == len(story["vetoes"]) == 1
    assert story["lost"]["wasted_steps"] == undone + 1
    assert [alarm["signal"] for alarm in story["alarms"]] == ["gradient_norm", "loss", "loss", "tev_reach"]
    assert [(lineage["number"], lineage["last_step"]) for lineage in story["lineages"]] == [
        (1, 121),
        (2, 131),
        (3, 162),
        (4, 220),
    ]
    starts = [lineage["first_step"] for lineage in story["lineages"]]
    assert starts == [0, *(rollback["target_step"] for rollback in story["rollbacks"])]
    assert story["attempts"] == run.state.attempt == run.state.step + undone
    assert len(story["records"]) == len(run.records) + 1
    left = {budget["key"]: budget["left"] for budget in story["budgets"]}
    assert left["watchdog.rollbacks"] == 2
    assert left["watchdog.deeper"] == left["watchdog.replays"] == 1
    assert left["watchdog.skipped_fraction"] == 0.2 * 2000 * BATCH - run.history.skipped_samples


def test_a_step_that_was_withheld_and_undone_is_lost_once() -> None:
    back = Rollback(103, 103, Remedy.SKIP, 100, 48, None, ((400, 800),), 1.0, "not finite")
    vetoes = [Record(Kind.VETO, n, n, 1, {"reason": "", "draws": [0, 8]}) for n in (40, 100, 101, 102)]
    records = [*vetoes, back.intent(1)]
    cost = lost(records, fold(records))
    assert (cost.undone_steps, cost.withheld_updates, cost.wasted_steps) == (55, 4, 56)


def test_evidence_is_pointed_to(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert troubled.document(capsys)["evidence"] == []
    folders = [troubled.path / f"evidence/attempt0000{number}" for number in (1200, 1301)]
    for folder in (*folders, folders[0].with_name(".attempt00001400.tmp")):
        folder.mkdir(parents=True)
    assert troubled.document(capsys)["evidence"] == [str(folder) for folder in folders]
    assert f"evidence           {folders[1]}\n" in troubled.printed(capsys)


def test_the_story_for_people(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    told = troubled.printed(capsys)
    for words in (
        "220 of 2,000, in ",
        "4 lineages",
        "running, or killed; the last sign of life",
        "run started on node-7: tensor 2",
        "step 121  alarm: loss high since step 120 (CUSUM 15.0, threshold 14.0)",
        "step 121  rollback (skip) to step ",
        "update withheld: gradient_norm is not finite",
        "rollback (deeper) to step ",
        "learning rate x 0.5 from update ",
        "rollback (replay) to step ",
        "the same samples again",
        "watchdog.rollbacks",
        "2 left of 3 rollbacks (skip) in 10,000 steps",
    ):
        assert words in told
    assert "\x1b" not in told, "no colours where there is no terminal"
    assert max(map(len, told.splitlines())) < 200


def test_health_of_checkpoints(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    told = troubled.run.history.certified
    first, second, third, *_ = sorted(told, key=Tag.parse)
    folder = troubled.path / "checkpoints"
    troubled.checkpoint(first, certified=True)
    troubled.checkpoint(second)
    troubled.checkpoint(third, certified=True)
    condemn(folder, Tag.parse(third), "inside an alarm")
    troubled.add(Kind.CONDEMNED, tag=third, reason="inside an alarm")
    for tag in ("step00000300-a901", "step00000300-a902"):
        troubled.checkpoint(tag)
    (folder / "step00000310-a903").mkdir()
    quarantine(folder, Tag.parse("step00000300-a902"), "bits")
    troubled.add(Kind.QUARANTINED, tag="step00000300-a902", reason="bits")
    (folder / "latest").write_text(first)
    found = {c["tag"]: (c["health"], c["latest"]) for c in troubled.document(capsys)["checkpoints"]}
    assert found[first] == ("certified", True)
    assert found[second] == ("sealed", False)
    assert found[third] == ("condemned", False)
    assert found["step00000300-a901"] == ("sealed", False)
    assert found["step00000300-a902"] == ("quarantined", False)
    assert found["step00000310-a903"] == ("torn", False)
    assert {health for tag, (health, _) in found.items() if int(tag[4:12]) > 40 and tag in told} == {
        "retired"
    }
    text = troubled.printed(capsys)
    assert f"{first}   certified, latest" in text or f"{first}  certified, latest" in text
    assert "certified in the ledger, but its certificate is missing" in text
    assert "condemned, inside an alarm" in text
    assert "sealed, not in the ledger" in text


@pytest.mark.parametrize(
    ("kind", "fields", "state"),
    [
        (Kind.DONE, {}, {"state": "finished", "code": 0, "reason": ""}),
        (Kind.PREEMPTED, {}, {"state": "preempted", "code": 75, "reason": ""}),
        (Kind.STOPPED, {"code": 5, "reason": "spent"}, {"state": "stopped", "code": 5, "reason": "spent"}),
    ],
)
def test_how_it_ended(
    troubled: RunFolder,
    capsys: pytest.CaptureFixture[str],
    kind: Kind,
    fields: dict[str, Any],
    state: dict[str, Any],
) -> None:
    troubled.add(kind, **fields)
    assert troubled.document(capsys)["ending"] == state
    told = troubled.printed(capsys).splitlines()[1].split(maxsplit=1)
    assert told[0] == "state"
    assert told[1].startswith(state["state"])
    troubled.add(Kind.RESUMED, tag="step00000200-a9")
    assert troubled.document(capsys)["ending"]["state"] == "open"


def test_a_lineage_begun_by_hand(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    troubled.run.state = replace(troubled.run.state, step=40, lineage=5)
    troubled.add(Kind.RESUMED, tag="step00000040-a40")
    lineages = troubled.document(capsys)["lineages"]
    assert lineages[-2]["end"] == "left; resumed by hand from step00000040-a40"
    assert (lineages[-1]["number"], lineages[-1]["first_step"]) == (5, 40)


def test_a_rollback_cut_short_is_told(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = LedgerFile(troubled.path / "ledger.jsonl")
    last = troubled.run.history.rollbacks[-1]
    ledger.append(replace(last, step=221, attempt=999, target_step=200).intent(4))
    ledger.close()
    assert "a rollback to step 200 is decided and not done" in troubled.printed(capsys)
    assert troubled.document(capsys)["pending"]["target_step"] == 200


EVERY_KIND: dict[Kind, dict[str, Any]] = {
    Kind.SUSPECT: {"signals": ["loss", "tev_mean"]},
    Kind.HOST_SUSPECT: {"rank": 3, "host": "node-7"},
    Kind.REBASELINE: {"reason": "new data", "declared": True},
    Kind.CALIBRATED: {"thresholds": {"loss": {"high": 15.25, "low": 14.0}}},
    Kind.CERTIFIED: {"tag": None, "horizon": 8},
    Kind.ALARM: {
        "alarms": [
            {"signal": "loss", "kind": "nonfinite", "onset": 3, "value": math.nan, "threshold": math.inf}
        ]
    },
    Kind.VETO: {"reason": "[/bold] brackets [red]", "draws": [0, 4]},
}


@pytest.mark.parametrize("terminal", [False, True])
def test_every_kind_of_record_can_be_told(
    troubled: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    for kind, fields in EVERY_KIND.items():
        troubled.add(kind, **fields)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    told = troubled.printed(capsys)
    assert ("\x1b" in told) is terminal
    for words in ("suspicion: loss, tev_mean", "new data", "brackets [red]", "loss is not finite (nan)"):
        assert words in told or terminal
    assert "[/bold] brackets [red]" in told
    troubled.document(capsys)


def test_a_run_without_a_ledger(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (troubled.path / "ledger.jsonl").unlink()
    assert "none: it was removed, or the run has not begun yet" in troubled.printed(capsys)
    assert troubled.document(capsys)["lineages"] == []


def test_a_run_without_metrics_has_the_steps_of_its_ledger(
    troubled: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (troubled.path / "metrics.jsonl").unlink()
    told = troubled.printed(capsys)
    assert f"{troubled.run.state.step:,} of " in told
    assert "none can be read: losses are not known" in told


def test_a_configuration_of_another_version(troubled: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with (troubled.path / "config.toml").open("a") as file:
        file.write("[future]\nkey = 1\n")
    assert "troubled, in " in troubled.printed(capsys)
    assert troubled.document(capsys)["budgets"] == []


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert main(["inspect", str(folder)]) == 2
        assert f"{folder}: not the folder of a run" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--json"]) == 2
    assert "not the folder of a run" in json.loads(capsys.readouterr().out)["error"]


def test_a_ledger_that_was_changed_is_refused(
    troubled: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = troubled.path / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"node-7", b"node-8"))
    assert main(["inspect", str(troubled.path)]) == 4
    assert f"{path}:2: does not follow" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(troubled: RunFolder) -> None:
    told = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from launch.cli import main; raise SystemExit(main())",
            "inspect",
            troubled.path,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert told.stdout
    told.stdout.close()
    _, problems = told.communicate()
    assert (told.returncode, problems) == (0, b"")


def test_inspect_needs_no_torch(troubled: RunFolder) -> None:
    done = run_and_list_heavy("inspect", str(troubled.path))
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("verdict", "step"),
    [("proceed", 221), ("veto", 221), ("halt", 220), ("rollback", 150)],
)
def test_a_step_that_was_not_taken_does_not_count(
    troubled: RunFolder, capsys: pytest.CaptureFixture[str], verdict: str, step: int
) -> None:
    """A vetoed one has consumed its samples; the one that ends the run, or takes it back, has done nothing."""
    assert troubled.run.history.rollbacks[-1].target_step == 150
    metrics = MetricsFile(troubled.path / "metrics.jsonl")
    metrics.append({"step": 221, "attempt": 500, "loss": 3.25, "verdict": verdict})
    metrics.close()
    assert troubled.document(capsys)["step"] == step


def test_the_step_that_ended_a_run_is_none_of_its_last_lineage(
    troubled: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = Record(Kind.ALARM, 221, 500, troubled.run.state.lineage, {"alarms": []})
    ledger = LedgerFile(troubled.path / "ledger.jsonl")
    ledger.append(alarm)
    ledger.close()
    troubled.add(Kind.STOPPED, code=5, reason="nothing helps")
    assert troubled.document(capsys)["lineages"][-1]["last_step"] == 220
