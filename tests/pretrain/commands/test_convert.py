"""`surefoot convert`: a run in another layout, or nothing that looks like one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.disk import small_disk
from support.distributed import run_distributed
from support.runs import metrics, newest_checkpoint, run_config, run_to_end
from support.training import Layout

from pretrain.checkpoint.certificate import certify, read_certificate
from pretrain.checkpoint.sealed import open_sealed
from pretrain.commands.__main__ import main
from pretrain.config.loader import load_config
from pretrain.ledger.file import read_ledger
from pretrain.ledger.record import Kind
from pretrain.run_folder import LEDGER, METRICS

ROOT = Path(__file__).parents[3]
BEFORE, AFTER = Layout(tensor=2), Layout(pipeline=2, accumulation=3)
TWO = ("--data", "2", "--set", "data.micro_batch_size=6")
OPTIONS = ("--tensor", "1", "--pipeline", "2", "--zero-stage", "1", "--set", "data.micro_batch_size=4")


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with a finished one of 8 steps, with checkpoints of steps 4 and 8, both certified."""
    folder = tmp_path_factory.mktemp("runs")
    config = run_config(BEFORE, folder, corpus, checkpoint={"every_steps": 4}, model={"dropout": 0.0})
    run_distributed(run_to_end, 2, config)
    certify(folder / "test/checkpoints/step00000004-a1", step=6, horizon=2)
    return folder


def convert(model: Path | str, out: Path, *options: str) -> int:
    return main(["convert", str(model), "--out", str(out), *options])


def test_a_converted_run_goes_on_as_the_one_that_never_changed(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "test"
    assert convert(f"{finished}/test@step00000004-a1", out, *OPTIONS) == 0
    config = load_config(out)
    assert (config.run_folder, config.parallel.pipeline, config.parallel.zero_stage) == (out, 2, 1)
    assert read_certificate(newest_checkpoint(tmp_path)).horizon == 2
    old, new = open_sealed(finished / "test/checkpoints/step00000004-a1"), open_sealed(out)
    assert new.manifest.converted_from == f"{old.folder}: tensor 2 x pipeline 1 x data 1, ZeRO 0, fp32"
    assert unequal(old.folder, out) == []
    run_distributed(run_to_end, 2, config)
    losses, twin = metrics(tmp_path), metrics(finished)
    assert losses.keys() == twin.keys()
    assert max(abs(losses[step] / twin[step] - 1) for step in twin) <= 1e-5
    assert "no files of DeepSpeed" in (out / "checkpoints/README.txt").read_text()
    kinds = [record.kind for record in read_ledger(out / LEDGER)]
    assert kinds.index(Kind.CONVERTED) < kinds.index(Kind.RESUMED, kinds.index(Kind.CONVERTED))


@pytest.mark.parametrize(
    "words",
    [("--tensor", "1"), ("--tensor", "4"), ("--pipeline", "2"), TWO, ("--tensor", "1", *TWO)],
    ids=" ".join,
)
def test_tensors_are_the_same_in_any_layout(words: tuple[str, ...], finished: Path, tmp_path: Path) -> None:
    assert convert(finished / "test", tmp_path / "out", *words) == 0
    assert unequal(finished / "test", tmp_path / "out") == []


def unequal(one: Path, other: Path) -> list[tuple[str, str]]:
    """Names and kinds of tensors that are not the same to the bit in the best checkpoints of two runs."""
    old, new = open_sealed(one).tensors, open_sealed(other).tensors
    assert old.names == new.names
    pairs = [(name, kind) for name in old.names for kind in old.kinds(name)]
    return [pair for pair in pairs if not torch.equal(old.read(*pair), new.read(*pair))]


def test_the_source_stays_as_it_was_and_the_best_of_a_run_is_taken(finished: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert convert(finished / "test", tmp_path / "out", "--dtype", "bf16", *TWO) == 0
    assert open_sealed(tmp_path / "out").manifest.tag == "step00000008-a2"
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_checkpoint_without_its_run_is_enough(finished: Path, tmp_path: Path) -> None:
    tag = "step00000008-a2"
    (tmp_path / "copied").mkdir()
    os.rename(_copy(finished / "test/checkpoints" / tag, tmp_path), tmp_path / "copied" / tag)
    assert convert(tmp_path / "copied" / tag, tmp_path / "out") == 0
    first, second = read_ledger(tmp_path / "out" / LEDGER)
    assert (first.kind, second.kind) == (Kind.RUN_START, Kind.CONVERTED)
    assert first.fields["run_id"] == open_sealed(tmp_path / "out").manifest.run_id


def _copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-r", source, target / "copy"], check=True)
    return target / "copy"


def flip_a_bit(folder: Path) -> None:
    path = folder / "state_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link_metrics(folder: Path) -> None:
    metrics = folder.parents[1] / METRICS
    metrics.rename(metrics.with_name("elsewhere"))
    metrics.symlink_to("elsewhere")


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int, str]] = {
    "a damaged source": (flip_a_bit, (), 4, "SHA-256 differs"),
    "a condemned one": (
        lambda folder: (folder / "CONDEMNED.txt").write_text("bad"),
        ("@step00000008-a2",),
        4,
        "is condemned",
    ),
    "no configuration": (
        lambda folder: (folder / "config.toml").unlink(),
        (),
        4,
        "config.toml: No such file",
    ),
    "no such tag": (lambda folder: None, ("@step00000009-a9",), 4, "No such file"),
    "no tag at all": (lambda folder: None, ("@newest",), 2, "newest is no tag"),
    "a layout that cannot be": (lambda folder: None, ("", "--tensor", "3"), 2, "model.attention.num_heads"),
    "a wider model": (
        lambda folder: None,
        ("", "--set", "model.ffn_hidden_size=32"),
        2,
        "another model than",
    ),
    "fewer layers": (
        lambda folder: None,
        ("", "--set", "model.num_layers=1"),
        2,
        "model.num_layers: would make",
    ),
    "other heads": (
        lambda folder: None,
        ("", "--set", "model.attention.num_heads=2"),
        2,
        "another model than",
    ),
    "another padding": (
        lambda folder: None,
        ("", "--set", "model.vocabulary_multiple=256"),
        2,
        "another model",
    ),
    "another optimizer": (
        lambda folder: None,
        ("", "--set", 'optimizer={kind = "sgd", learning_rate = 0.1}'),
        2,
        "optimizer.kind = sgd",
    ),
    "metrics that cannot be read": (
        link_metrics,
        (),
        4,
        "copy/metrics.jsonl: is a symbolic link, and none is followed here\n",
    ),
    "a changed ledger": (
        lambda folder: (folder.parents[1] / LEDGER).write_bytes(b"\xff\n"),
        (),
        4,
        "copy/ledger.jsonl:1: ",
    ),
    "a key that there is not": (lambda folder: None, ("", "--set", "run.step=1"), 2, "run.steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(
    case: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, (place, *options), code, told = REFUSED[case][0], REFUSED[case][1] or ("",), *REFUSED[case][2:]
    run = _copy(finished / "test", tmp_path)
    damage(run / "checkpoints/step00000008-a2")
    assert convert(f"{run}{place}", tmp_path / "out", *options) == code
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_folder_that_is_there_is_left_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("mine")
    assert convert(finished / "test", tmp_path) == 2
    assert "is no empty folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_full_disk_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(path.stat().st_size for path in newest_checkpoint(finished).iterdir())
    with small_disk(tmp_path / "disk", size // 2) as disk:
        assert convert(finished / "test", disk / "out") == 4
        assert "are needed" in capsys.readouterr().err
        assert list(disk.iterdir()) == []


KILLED = """
import os, signal, sys
from pretrain.checkpoint import rank_files
from pretrain.commands.__main__ import main
count = 0
def dying(path, *rest):
    global count
    count += 1
    if count > {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return described(path, *rest)
described = rank_files.fsync_and_hash
rank_files.fsync_and_hash = dying
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", range(4))
def test_killed_it_leaves_nothing_that_looks_whole(number: int, finished: Path, tmp_path: Path) -> None:
    """Before the first, second, ... file is on the disk; the same command then does it all."""
    command = [
        sys.executable,
        "-c",
        KILLED.format(number=number),
        "convert",
        finished / "test",
        "--out",
        tmp_path / "out",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("MANIFEST.json"))
    assert convert(finished / "test", tmp_path / "out") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "what the killed one has left is gone"
