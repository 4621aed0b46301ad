"""What we start imports this installation of ours, whatever lies in the current directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import dumped, run_config
from support.training import Layout
from support.traps import SAID, set_traps

from launch import children
from launch.children import PACKAGES, ROOT, child_environment, search_path
from launch.hosts import host_environment
from pretrain.errors import ConfigurationError

SUREFOOT = [sys.executable, "-P", "-c", "import sys; from launch.cli import main; sys.exit(main())"]
SECONDS = 200


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is full of traps."""
    folder = set_traps(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("given", ["", ":", ".", "{here}", "{here}/", "../project", "/nowhere:"])
def test_children_import_nothing_from_the_current_directory(trap: Path, given: str) -> None:
    environment = child_environment({**os.environ, "PYTHONPATH": given.format(here=trap)})
    script = f"import json, random, {', '.join(PACKAGES)}; print(json.dumps([{', '.join(PACKAGES)}], default=repr))"
    for words in (["-c", script], ["-m", "data_pipeline", "--help"]):
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, check=True
        )
        assert SAID not in done.stderr
        assert str(trap) not in done.stdout


def test_children_read_utf8_in_every_locale() -> None:
    """torch reads a template of its own by the locale, and it is not ASCII."""
    environment = child_environment(
        {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )
    script = "import locale; print(locale.getpreferredencoding())"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "utf-8\n"


def test_own_folder_comes_before_those_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(children, "INSTALLED", False)
    monkeypatch.chdir(tmp_path)
    assert list(search_path(f"{os.pathsep}/mine")) == [str(ROOT), "/mine"]
    monkeypatch.chdir(ROOT)
    assert next(search_path(".")) == str(ROOT), "a checkout that is not installed works in its root"


def test_folder_of_an_installation_is_left_to_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before Python's own it would hide modules of the standard library behind old backports."""
    monkeypatch.setattr(children, "INSTALLED", True)
    trap, plain = set_traps(tmp_path / "elsewhere"), tmp_path / "plain"
    (plain / "pretrain").mkdir(parents=True)  # a folder of texts, not a package
    assert list(search_path(f"{trap}{os.pathsep}{plain}")) == [str(plain)]


@pytest.mark.parametrize("path", [".", ""])
def test_commands_find_their_own_packages(trap: Path, path: str) -> None:
    """`PYTHONPATH=. surefoot check` from a folder with a `pretrain.py`; `launch` itself Python has to find."""
    for name in ("launch", "random", "sitecustomize", "pydantic", "numpy"):
        (trap / f"{name}.py").unlink()
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [*SUREFOOT, "check", str(ROOT / "configs/gpt/demo.toml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, SAID in done.stderr) == (0, False), done.stderr


@pytest.mark.slow
def test_training_runs_in_a_folder_full_of_traps(trap: Path, corpus: Path, tmp_path: Path) -> None:
    sections = {"run": {"steps": 2}, "evaluation": {"samples": 4}}
    config = dumped(run_config(Layout(), tmp_path / "runs", corpus, **sections), tmp_path / "run.toml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*SUREFOOT, "train", str(config), "--num-accelerators", "1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (done.returncode, SAID in done.stderr) == (0, False), done.stderr
    kinds = [
        json.loads(line)["kind"] for line in (tmp_path / "runs/test/ledger.jsonl").read_text().splitlines()
    ]
    assert kinds[-1] == "done"


@pytest.mark.parametrize("module", ["pretrain", "data_pipeline"])
def test_module_by_hand_leaves_the_current_directory_out(tmp_path: Path, module: str) -> None:
    """`python -m pretrain` and `torchrun -m pretrain` put it first; what is found in place of us, nobody can help."""
    here = set_traps(tmp_path / "project", "random", "sitecustomize", "usercustomize", module)
    words = {"pretrain": ["absent.toml"], "data_pipeline": ["text", "absent", "--out", "x"]}[module]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, SAID in done.stderr) == ({"pretrain": 2, "data_pipeline": 3}[module], False), (
        done.stderr
    )


def test_hosts_get_our_path_after_the_words_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's launcher puts the current directory first, but takes what its file of variables says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path(".deepspeed_env").write_text("NCCL_DEBUG=INFO\nPYTHONPATH=/theirs")
    assert host_environment("/ours").splitlines() == [
        "NCCL_DEBUG=INFO",
        "PYTHONPATH=/theirs",
        "PYTHONPATH=/ours",
    ]
    Path(".deepspeed_env").write_text("\n")
    with pytest.raises(ConfigurationError, match=r"\.deepspeed_env:1: a blank line"):
        host_environment("/ours")
