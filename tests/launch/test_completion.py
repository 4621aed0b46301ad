"""Shells complete our commands: the scripts are sourced by real shells, and asked."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.completion import keys, script
from launch.subcommands import build_parser

ASK_BASH = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_surefoot 2>&1
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / f"surefoot.{shell}").write_text(script(shell, build_parser()))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory has configurations, other files and the folder of a run."""
    for name in ("run.toml", "other.toml", "notes.txt", "hosts"):
        (tmp_path / name).touch()
    (tmp_path / "runs" / "my run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bash(scripts: Path, *words: str) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in ("surefoot", *words))
    question = ASK_BASH.format(script=scripts / "surefoot.bash", words=quoted)
    done = subprocess.run(["bash", "-uc", question], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def fish(scripts: Path, *words: str) -> list[str]:
    line = " ".join(["surefoot", *words])
    question = f"source {scripts / 'surefoot.fish'}; complete -C '{line}'"
    done = subprocess.run(["fish", "--no-config", "-c", question], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [found.partition("\t")[0] for found in done.stdout.splitlines()]


ASK = {
    "bash": bash,
    "fish": pytest.param(fish, marks=pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")),
}
COMMANDS = {"prepare", "check", "doctor", "train", "rehearse", "inspect", "generate", "completion"}
QUESTIONS = [
    (("",), COMMANDS, {"run.toml", "runs/"}),
    (("tr",), {"train"}, {"check"}),
    (("train", "--nu"), {"--num-accelerators"}, {"--hostfile"}),
    (("train", "run.toml", "--launcher", ""), {"pdsh", "slurm", "openmpi"}, {"run.toml"}),
    (("check", ""), {"run.toml", "other.toml"}, {"notes.txt", "hosts"}),
    (("check", "run.toml", "--set", "model.num_l"), {"model.num_layers="}, {"model.hidden_size="}),
    (("train", "run.toml", "--hostfile", "ho"), {"hosts"}, {"run.toml"}),
    (("train", "run.toml", "--num-accelerators", ""), set(), {"run.toml", "hosts"}),
    (("inspect", "runs/m"), {"runs/my run"}, {"run.toml"}),
    (("generate", "runs/m"), {"runs/my run"}, {"run.toml"}),
    (("generate", "runs", "--temp"), {"--temperature"}, {"--top-k"}),
    (("generate", "runs", "--file", "not"), {"notes.txt"}, set()),
    (("prepare", ""), {"text"}, {"run.toml"}),
    (("prepare", "text", "--vo"), {"--vocabulary-size"}, {"--out"}),
    (("prepare", "text", "not"), {"notes.txt"}, {"run.toml"}),
    (("completion", ""), {"bash", "zsh", "fish"}, {"run.toml"}),
]


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize(
    ("words", "wanted", "unwanted"),
    QUESTIONS,
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else " ".join(value),
)
def test_shell_completes(
    scripts: Path, here: Path, ask: object, words: tuple[str, ...], wanted: set[str], unwanted: set[str]
) -> None:
    assert callable(ask)
    found = {str(word).rstrip("/").replace("\\ ", " ") for word in ask(scripts, *words)}
    assert {word.rstrip("/") for word in wanted} <= found
    assert not unwanted & found


def test_value_of_a_key_is_not_a_file(scripts: Path, here: Path) -> None:
    """bash cuts words at the equals sign."""
    assert bash(scripts, "check", "run.toml", "--set", "run.name", "=", "") == []


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_completes(scripts: Path, here: Path) -> None:
    """Its completion runs in a line editor alone, so that gets a pseudo-terminal of its own (zpty)."""
    question = f"""
        zmodload zsh/zpty
        zpty shell zsh -f -i
        ask() {{ zpty -w shell "$1" }}
        ask 'PS1=; autoload -U compinit && compinit -u -d {here}/dump; source {scripts}/surefoot.zsh'
        ask 'comppostfuncs=(tell); tell() {{ print -r -- "ANSWER $compstate[nmatches] $PREFIX" >> {here}/told; exit }}'
        zpty -n -w shell $'surefoot check run.toml --set model.num_l\\t'
        for i in {{1..200}}; do [[ -s {here}/told ]] && break; sleep 0.1; done
    """
    subprocess.run(["zsh", "-f", "-c", question], check=False, timeout=60)
    assert (here / "told").read_text().startswith("ANSWER 1")


def test_keys_are_those_that_can_be_set() -> None:
    assert {"run.steps", "model.attention.num_heads", "optimizer.kind", "data.sources"} <= set(keys())
    assert not any("[" in key for key in keys())


def test_command_prints_the_script() -> None:
    program = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main())"]
    done = subprocess.run([*program, "completion", "bash"], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("complete -F _surefoot surefoot")
