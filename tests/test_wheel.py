"""A wheel installed elsewhere has all that a user needs, and nothing else; the source archive builds the same wheel."""

import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from sysconfig import get_path
from zipfile import ZipFile

import pytest
from support.runs import dumped, run_config
from support.training import Layout
from support.traps import SAID, set_traps

ROOT = Path(__file__).parent.parent
PACKAGES = ("data_pipeline", "launch", "parallel", "pretrain")
SECONDS = 280

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def pip_wheel(source: Path, folder: Path) -> Path:
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    subprocess.run(words, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with nothing but the wheel; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    words = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(words, check=True)
    # A .pth file makes no use of other such files, like the one that finds this checkout.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(get_path("purelib"))
    return folder / "bin"


def members(wheel: Path) -> set[str]:
    return {re.sub(r"^surefoot-[^/]*", "surefoot", name) for name in ZipFile(wheel).namelist()}


def test_wheel_has_the_packages_and_what_belongs_to_them(wheel: Path) -> None:
    found = members(wheel)
    code = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    typed = {f"{name}/py.typed" for name in PACKAGES}
    configs = {f"surefoot/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.toml")}
    shared = {
        name.replace("surefoot/data/share/surefoot/", "surefoot/") for name in found if "/share/" in name
    }
    about = {
        f"surefoot/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    assert shared == configs
    assert {name for name in found if "/share/" not in name} == code | typed | about
    (metadata,) = (name for name in ZipFile(wheel).namelist() if name.endswith("METADATA"))
    assert "# Surefoot" in ZipFile(wheel).read(metadata).decode()


def test_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tool), "hatchling"]
    subprocess.run(words, check=True)
    words = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tool)}, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    assert {"tests", "docs", "configs", "benchmarks", "CHANGELOG.md", "LICENSE"} <= {
        p.name for p in source.iterdir()
    }
    assert members(pip_wheel(source, tmp_path / "again")) == members(wheel)


def test_commands_work_from_a_folder_with_modules_called_like_ours(environment: Path, tmp_path: Path) -> None:
    here = set_traps(tmp_path / "project")
    before = sorted(here.rglob("*"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(
            f"line {number} of a text that is long enough to be learnt\n" * 40
        )
    sizes = ["--vocabulary-size", "300", "--sequence-length", "32", "--workers", "1"]
    sections = {"run": {"steps": 4}, "evaluation": {"samples": 4}}
    config = run_config(Layout(data=2, zero=1), tmp_path / "runs", tmp_path / "data", **sections)
    path = str(dumped(config, tmp_path / "run.toml"))

    def surefoot(*words: str) -> str:
        command = [str(environment / "surefoot"), *words]
        done = subprocess.run(
            command,
            cwd=here,
            env={"PATH": f"{environment}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert (done.returncode, SAID in done.stdout + done.stderr) == (0, False), done.stdout + done.stderr
        return done.stdout

    assert str(environment.parent) in surefoot("--version")
    surefoot("prepare", "text", str(texts), "--out", str(tmp_path / "data"), *sizes)
    assert "tensor 1 x pipeline 1 x data 2" in surefoot("check", path, "--world-size", "2")
    surefoot("train", path, "--num-accelerators", "2")
    assert "done" in surefoot("inspect", str(tmp_path / "runs/test"))
    assert "complete -F" in surefoot("completion", "bash")
    demo = environment.parent / "share/surefoot/configs/gpt/demo.toml"
    assert "parameters" in surefoot("check", str(demo))
    assert sorted(here.rglob("*")) == before, "the current directory stays as it was"
