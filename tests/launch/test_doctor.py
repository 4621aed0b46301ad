"""The doctor looks at everything, and says so when something would break a run."""

import json
import sys
from pathlib import Path

import pytest

from launch.doctor import (
    GIB,
    Finding,
    Level,
    devices_agree,
    doctor,
    hosts,
    nearest_folder,
    probe,
    room,
    tools,
    variables_for_hosts,
    verdict,
)


def test_a_sound_machine_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor runs in earnest here, with self-test and DeepSpeed's report."""
    code = doctor(None, tmp_path, as_json=True)
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["two ranks"]["text"] == "sum over gloo is right"
    assert {"torch", "deepspeed", "apex", "disk", "shared memory", "kernels", "ds_report"} <= findings.keys()
    assert "fused Adam" in findings["kernels"]["text"]
    assert "norms (apex: " in findings["kernels"]["text"]
    faults = [finding for finding in findings.values() if finding["level"] == "fault"]
    assert code == (2 if faults else 0)


@pytest.mark.parametrize(
    ("needed", "wanted", "level"),
    [(0, 0, Level.OK), (0, 10**9 * GIB, Level.WARNING), (10**9 * GIB, 10**9 * GIB, Level.FAULT)],
)
def test_room(tmp_path: Path, needed: int, wanted: int, level: Level) -> None:
    assert room("disk", tmp_path, needed, wanted).level is level


def test_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path / "runs" / "name") == tmp_path
    assert room("disk", tmp_path / "absent", 0, 0).level is Level.FAULT


def test_environment_file_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ENV_FILE", ".my_env")
    (tmp_path / ".my_env").write_text("A=b\n\n")
    (finding,) = variables_for_hosts()
    assert finding.level is Level.FAULT
    assert f"{tmp_path}/.my_env:2: a blank line" in finding.text


def test_bad_hostfile_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a slots=1\na slots=1\n")
    (finding,) = hosts(path)
    assert finding.level is Level.FAULT
    assert "line 1" in finding.text


def test_host_that_cannot_be_reached_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("nowhere.invalid slots=1\n")
    finding = list(hosts(path))[-1]
    assert (finding.name, finding.level) == ("nowhere.invalid", Level.FAULT)


def test_probe_gives_up() -> None:
    code, output = probe([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.2)
    assert code == -1
    assert "no answer" in output
    assert probe(["/does/not/exist"])[0] == -1


def test_devices_are_named() -> None:
    (finding,) = devices_agree(["GPU", "GPU"], "12.8")
    assert finding.text == "GPU with CUDA 12.8"


def test_an_empty_environment_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    monkeypatch.delenv("HOME", raising=False)
    assert {finding.name for finding in (*tools(), *variables_for_hosts())} >= {"compiler", "ninja"}


@pytest.mark.parametrize(
    ("levels", "level", "words"),
    [
        ([Level.OK], Level.OK, "nothing here would break a run"),
        ([Level.OK, Level.WARNING], Level.OK, "but mind 1 warning (b)"),
        ([Level.FAULT, Level.WARNING, Level.FAULT], Level.FAULT, "2 faults (a, c), 1 warning (b)"),
    ],
)
def test_last_word_is_a_verdict(levels: list[Level], level: Level, words: str) -> None:
    found = verdict([Finding(name, level, "") for name, level in zip("abc", levels, strict=False)])
    assert (found.name, found.level) == ("verdict", level)
    assert words in found.text
