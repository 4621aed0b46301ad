"""`surefoot generate` writes text with a model that was trained on several ranks."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.distributed import run_distributed
from support.runs import newest_checkpoint, run_config, run_to_end
from support.training import Layout

from parallel.mesh import ParallelMesh
from pretrain.commands.__main__ import main
from pretrain.commands.output import write
from pretrain.tasks.gpt.task import GPT

ROOT = Path(__file__).parents[3]
GENERATE = [sys.executable, "-m", "pretrain.commands", "generate"]
FEW = ("--max-tokens", "12")
Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory, alone: ParallelMesh) -> Path:
    """The folder of a run on two tensor-parallel ranks."""
    folder = tmp_path_factory.mktemp("runs")
    run_distributed(run_to_end, 2, run_config(Layout(tensor=2), folder, corpus))
    return folder / "test"


@pytest.fixture
def generate(capfd: pytest.CaptureFixture[str], alone: ParallelMesh) -> Generate:
    """It runs the command; returns its exit code, standard output and standard error."""

    def generate(*words: object) -> tuple[int, str, str]:
        code = main(["generate", *map(str, words)])
        return code, *capfd.readouterr()

    return generate


def test_a_seed_writes_one_text(run: Path, generate: Generate) -> None:
    code, text, told = generate(run, "--prompt", "the run", "--seed", 3, *FEW)
    assert code == 0
    assert text.startswith("the run")
    assert len(text) > len("the run")
    checkpoint = newest_checkpoint(run.parent)
    assert told == f"surefoot generate: {checkpoint} (certified), --seed 3\n"
    assert generate(run, "--prompt", "the run", "--seed", 3, *FEW)[1] == text
    assert generate(run, "--prompt", "the run", "--seed", 4, *FEW)[1] != text


def test_a_seed_that_was_drawn_is_told(run: Path, generate: Generate) -> None:
    texts = []
    for _ in range(2):
        _, text, told = generate(run, *FEW, "--temperature", 3)
        seed = re.search(r"--seed (\d+)$", told.strip())
        assert seed
        assert generate(run, *FEW, "--temperature", 3, "--seed", seed[1])[1] == text
        texts.append(text)
    assert texts[0] != texts[1]


def test_a_model_is_named_in_several_ways(run: Path, tmp_path: Path, generate: Generate) -> None:
    (tmp_path / "prompt.txt").write_text("the run")
    checkpoint = newest_checkpoint(run.parent)
    texts = {
        generate(model, "--file", tmp_path / "prompt.txt", "--temperature", 0, *FEW)[1]
        for model in (run, f"{run}@{checkpoint.name}", checkpoint)
    }
    assert len(texts) == 1
    assert generate(run, "--prompt", "the run", "--temperature", 0, *FEW)[1] in texts


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["{run}", "--prompt", "a\udcff"], 2, "--prompt: "),
        (["{run}", "--file", "{run}/absent"], 2, "/absent: No such file or directory"),
        (["{run}", "--file", "{checkpoint}/rank_00000.pt"], 2, "can't decode byte"),
        (["{run}/checkpoints"], 2, "neither a checkpoint nor a run"),
        (["{run}@step00000001-a9"], 4, "step00000001-a9"),
    ],
)
def test_what_cannot_work_is_refused(
    words: list[str], code: int, told: str, run: Path, generate: Generate
) -> None:
    places = {"run": run, "checkpoint": newest_checkpoint(run.parent)}
    found = generate(*(word.format(**places) for word in words))
    assert found[:2] == (code, "")
    assert told in found[2]


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--temperature", "inf"],
        ["--top-k", "0"],
        ["--top-p", "0"],
        ["--top-p", "1.1"],
        ["--seed", "-1"],
        ["--seed", str(2**63)],
        ["--max-tokens", "0"],
        ["--prompt", "a", "--file", "b"],
    ],
)
def test_numbers_that_mean_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "runs/absent", *words])
    assert ended.value.code == 2


def test_a_model_that_writes_no_text_is_refused(
    run: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT, "text", lambda *_: None)
    code, text, told = generate(run, *FEW)
    assert (code, text) == (2, "")
    assert "holds a model of kind gpt, which is none that writes text" in told


HOSTILE = "a\x1b[2J\u202e\tb\nc"


def test_a_pipe_gets_the_text_itself(run: Path) -> None:
    done = subprocess.run(
        [*GENERATE, str(run), "--prompt", HOSTILE, *FEW],
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.decode().startswith(HOSTILE)


def test_a_terminal_is_not_controlled(run: Path) -> None:
    """Nor is the text cut before its line ends."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*GENERATE, str(run), "--prompt", HOSTILE, *FEW], cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            output += os.read(ours, 4096)
        except OSError:  # the other end has gone
            break
    os.close(ours)
    assert process.stderr
    process.stderr.close()
    assert process.wait() == 0
    text = output.decode().replace("\r\n", "\n")
    assert text.startswith("a\\x1b[2J\\u202e\tb\nc")
    assert "\x1b" not in text
    assert text.endswith("\n")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGPIPE])
def test_it_can_be_stopped(run: Path, ending: signal.Signals) -> None:
    """Ctrl-C, and nobody who reads on."""
    endless = [*GENERATE, str(run), "--temperature", "0", "--prompt", "the", "--max-tokens", str(10**9)]
    process = subprocess.Popen(endless, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.read(10)[:3] == b"the"
    if ending == signal.SIGPIPE:
        process.stdout.close()
    else:
        process.send_signal(ending)
        process.stdout.read()
    told = process.stderr.read().decode()
    assert process.wait() == (-signal.SIGPIPE if ending == signal.SIGPIPE else 130)
    assert len(told.splitlines()) == 1, told


def test_text_is_there_as_soon_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next part is asked for, who reads has all before it."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)

    def parts() -> Iterator[str]:
        for part in ("a", "\N{PAW PRINTS}", "", "c"):
            yield part
            assert os.read(ours, 10).decode() == part if part else True

    with os.fdopen(theirs, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        write(parts())
    os.close(ours)
