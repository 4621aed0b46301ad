"""docs/adding-a-task.md, done word for word in a copy of the packages: its files, its lines, its commands."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding-a-task.md"
PACKAGES = ("data_pipeline", "parallel", "pretrain", "launch")
BLOCK = re.compile(r"(?:\*\*`(?P<path>[^`]+)`\*\*\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
SUREFOOT = "import sys; from launch.cli import main; sys.exit(main(sys.argv[1:]))"
MOST_CHANGED_LINES = 4


@dataclass(frozen=True)
class Block:
    """A block of code on the page, with the file that it is about."""

    path: str
    language: str
    text: str


def blocks() -> list[Block]:
    return [Block(m["path"] or "", m["language"], m["text"]) for m in BLOCK.finditer(PAGE.read_text())]


def added_lines(block: Block) -> list[str]:
    return [line[1:] for line in block.text.splitlines() if line.startswith("+")]


def apply(diff: Block, root: Path) -> None:
    """Put the added lines in front of the kept line that they precede, or behind the last one that they follow."""
    lines = (root / diff.path).read_text().splitlines()
    place: int | None = None
    waiting: list[str] = []
    for line in diff.text.splitlines():
        if line.startswith("+") and place is None:
            waiting.append(line[1:])
            continue
        if line.startswith("+"):
            lines.insert(place, line[1:])
            place += 1
            continue
        found = lines.index(line[1:])
        lines[found:found] = waiting
        place, waiting = found + len(waiting), []
        if line.startswith("-"):
            del lines[place]
        else:
            place += 1
    (root / diff.path).write_text("\n".join(lines) + "\n")


def follow_the_page(root: Path) -> list[str]:
    """Copy the packages, add the files, change the lines; returns the commands."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("*.png"))
    commands: list[str] = []
    for block in blocks():
        if block.language == "sh":
            commands += block.text.splitlines()
        elif block.language == "diff":
            apply(block, root)
        else:
            path = root / block.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if block.language == "python" and not block.path.startswith("tests/"):
                (path.parent / "__init__.py").touch()
            path.write_text(block.text)
    return commands


def run(command: str, root: Path) -> str:
    """The output of a command of the page, with `surefoot` from the copy."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if command.startswith("surefoot "):
        words: list[str] = [sys.executable, "-c", SUREFOOT, *command.split()[1:]]
    else:
        program = {"python": sys.executable, "pytest": f"{sys.executable} -m pytest -p no:cacheprovider"}
        first, *rest = command.split(" ")
        words = ["sh", "-c", " ".join([program.get(first, first), *rest])]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_few_lines_change_and_the_rest_is_new() -> None:
    changes = [block for block in blocks() if block.language == "diff"]
    assert sum(len(added_lines(block)) for block in changes) <= MOST_CHANGED_LINES
    new = [block.path for block in blocks() if block.language in ("python", "toml")]
    assert len(new) == len(set(new))
    assert not any((ROOT / path).exists() for path in new)


@pytest.mark.timeout(480)
def test_the_page_ends_in_a_run_that_has_learnt(tmp_path: Path) -> None:
    root = tmp_path / "surefoot"
    root.mkdir()
    commands = follow_the_page(root)
    programs = [command.split()[0] for command in commands]
    assert programs == ["cat", "cat", "surefoot", "surefoot", "surefoot", "python", "pytest"]
    *_, trained, _, tested = [run(command, root) for command in commands]
    assert "accuracy" in trained
    assert "2 passed" in tested, "on one rank and on two"
    assert "classifier" in (root / "docs/configuration.md").read_text()
    rows = [json.loads(line) for line in (root / "runs/lines/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "validation_accuracy" in row][-1]
    assert last["step"] == 80
    assert last["validation_accuracy"] > 0.8
    steps = [row for row in rows if "loss" in row]
    assert {"tev_mean", "attention_entropy_min", "sigma_max", "gradient_variance"} <= set().union(*steps)
