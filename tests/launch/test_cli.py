"""The command is called as users call it: its output and exit codes are right, and it does without torch."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.light import run_and_list_heavy

from launch.cli import main
from launch.subcommands import split_extra

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs" / "gpt" / "demo.toml")


def test_check_needs_no_torch() -> None:
    done = run_and_list_heavy("check", DEMO)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "\x1b" not in done.stdout, "no colours where there is no terminal"


def test_check_prints_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where no data of the demo lies, which these sizes do not fit
    sizes = ("data.global_batch_size=32", "data.micro_batch_size=16", "data.sequence_length=256")
    overrides = [word for size in sizes for word in ("--set", size)]
    assert main(["check", DEMO, "--world-size", "4", *overrides]) == 0
    out = capsys.readouterr().out
    assert "4 = tensor 2 x pipeline 1 x data 2" in out
    assert "micro 16 x accumulation 1 x data 2 = 32 samples = 8,192 tokens a step" in out
    assert '"train_batch_size": 32' in out


@pytest.mark.parametrize("tag", ["", "latest", "../step00001200-a3"])
def test_resuming_from_what_is_no_checkpoint_is_refused(tag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty name is that of a variable that is not set: the newest checkpoint is not what was asked for."""
    assert main(["train", DEMO, "--num-accelerators", "2", "--resume", tag]) == 2
    assert f"--resume {tag}: not the name of a checkpoint" in capsys.readouterr().err


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DEMO, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["world_size"] == 2
    assert document["batch"]["samples"] == document["deepspeed"]["train_batch_size"]
    assert document["parameters"]["total"] > document["parameters"]["non_embedding"] > 0
    assert document["memory"]["total"] == max(sum(stage["memory"].values()) for stage in document["stages"])
    assert document["tokens"] == document["steps"] * document["batch"]["tokens"]


def test_check_estimates_a_step_on_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", DEMO, "--world-size", "4", "--set", "data.global_batch_size=32"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "all_gather 2 x" in out
    assert "--device NAME estimates it: a100, h100, h200" in out
    assert main([*command, "--device", "h100"]) == 0
    out, err = capsys.readouterr()
    assert "an estimate from declared rates of h100, not a measurement" in out
    assert "bound by" in out
    assert "the host may be what a step waits for" in err
    rates = ["--rate", "network_gb_per_second=1e-6", "--rate", "gpus_per_node=2"]
    assert main([*command, "--device", "h100", *rates, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    time, (messages,) = document["step_time"], document["messages"]
    assert time["bound"] == "data"
    assert time["rates"]["gpus_per_node"] == 2
    assert {message["axis"] for message in messages} == {"tensor", "data"}


def test_check_tells_that_a_device_is_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DEMO, "--device", "a100", "--rate", "memory_gb=1e-6"]) == 0
    assert "more than the 1000 bytes of a100" in capsys.readouterr().err


def test_check_tells_that_the_data_is_not_there_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = "[{path='s3://bucket/text'}]"
    assert main(["check", DEMO, "--set", f"data.sources={remote}"]) == 0
    assert "data.sources" not in capsys.readouterr().err
    gone = f"[{{path={json.dumps(str(tmp_path / 'gone'))}}}]"
    assert main(["check", DEMO, "--json", "--set", f"data.sources={gone}"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert f"{tmp_path / 'gone'} is not on this machine" in warning


def test_faults_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DEMO, "--json", "--set", "run.step=1", "--set", "run.seed=-1"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert {problem["key"] for problem in document["faults"]} == {"run.step", "run.seed"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "absent.toml"],
        ["train", DEMO, "--set", "run.step=1"],
        ["train", DEMO, "--num-accelerators", "3"],
        ["train", DEMO, "--include", "worker-0"],
        ["train", DEMO, "--hostfile", "absent"],
        ["train", DEMO, "--hang-after", "60"],
        ["train", DEMO, "--profile", "20-10"],
        ["train", DEMO, "--profile", "99999999"],
        ["train", DEMO, "--supervise", "--set", "run.step=1"],
        ["train", DEMO, "--set", "run.deepspeed_config=absent.json"],
        ["train", DEMO, "--set", 'data.sources=[{path="t",weight=10000},{path="newt",weight=1}]'],
        ["check", DEMO, "--set", 'data.sources=[{path="t",weight=10000},{path="newt",weight=1}]'],
        ["check", DEMO, "--world-size", "3"],
        ["check", DEMO, "--rate", "gpus_per_node=4"],
        ["check", DEMO, "--device", "h100", "--rate", "gpus_per_nod=4"],
    ],
)
def test_nothing_starts_when_something_is_wrong(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("surefoot: ")
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["check"],
        ["train", DEMO, "--num-accelerators", "0"],
        ["train", DEMO, "--hang-after", "0"],
        ["train", DEMO, "--master-port", "0"],
        ["train", DEMO, "--master-port", "99999"],
        ["rehearse", DEMO, "--fault", "tev_drift", "--master-port", "-1"],
    ],
)
def test_bad_command_lines_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_words_after_two_dashes_are_for_deepspeed() -> None:
    assert split_extra(["train", "c", "--", "--bind_cores_to_rank"]) == (
        ["train", "c"],
        ("--bind_cores_to_rank",),
    )
    assert split_extra(["check", "c"]) == (["check", "c"], ())


@pytest.mark.parametrize(
    ("command", "told"), [("prepare", "text for next-token"), ("generate", "--temperature T")]
)
def test_some_commands_are_programs_of_their_own(command: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from launch.cli import main; main()", command, "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert told in done.stdout


def test_commands_that_use_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"^    generate +have a language model", capsys.readouterr().out, re.MULTILINE)


def test_version_says_what_runs_without_importing_it() -> None:
    done = run_and_list_heavy("--version")
    assert done.stderr == "[]\n"
    ours, theirs = done.stdout.splitlines()
    assert ours == f"surefoot {version('surefoot')} in {ROOT}"
    assert f"torch {version('torch')}, deepspeed {version('deepspeed')}" in theirs
