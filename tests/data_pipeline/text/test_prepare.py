"""`surefoot prepare text` from raw files to training batches, interrupted and run again."""

import hashlib
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import webdataset
from support.training import slow

from data_pipeline.__main__ import main
from data_pipeline.preparing.source_files import HIDDEN, OUTSIDE
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.text import prepare as text_prepare
from data_pipeline.text.config import TextConfig
from data_pipeline.text.describe import spelled
from data_pipeline.text.prepare import fraction
from data_pipeline.text.source import TextSource
from data_pipeline.text.tokenizer import END_OF_TEXT, Tokenizer

LENGTH = 16
OPTIONS = ["--vocabulary-size", "300", "--sequence-length", str(LENGTH), "--validation-fraction", "0.3"]
REPOSITORY = Path(__file__).parents[3]


def documents() -> list[str]:
    words = ["rank", "loss", "step", "data", "shard", "order", "token", "batch"]
    return [
        " ".join(words[(number * 7 + place * place) % 8] for place in range(60)) + f"\n{number}\n"
        for number in range(24)
    ]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for number, text in enumerate(documents()):
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "data"
    assert run(raw, out, "--shard-samples", "10") == 0
    return out


def run(source: object, out: Path, *options: str, workers: int = 1) -> int:
    return main(["text", str(source), "--out", str(out), "--workers", str(workers), *OPTIONS, *options])


def manifest(out: Path, split: str) -> dict[str, object]:
    return dict(json.loads((out / split / "manifest.json").read_text()))


def blocks(out: Path, split: str) -> list[list[int]]:
    """What a plain webdataset reads."""
    urls = [str(path) for path in sorted((out / split).glob("*.tar"))]
    return [sample["npy"].tolist() for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()]


def contents(folder: Path) -> dict[str, bytes]:
    """All that decides what a run reads."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "prepare.json"
    }


def test_the_blocks_are_the_documents_of_each_split(prepared: Path) -> None:
    tokenizer = Tokenizer.load(prepared / "tokenizer.model")
    total = 0
    for split, held_out in (("train", False), ("validation", True)):
        mine = [text for text in documents() if (fraction("validation/0", text) < 0.3) == held_out]
        stream = [tokenizer.end_of_text]
        for text in mine:
            stream += [*tokenizer.encode(text), tokenizer.end_of_text]
        packed = blocks(prepared, split)
        assert len(packed) == (len(stream) - 1) // LENGTH
        assert packed == [stream[n * LENGTH : (n + 1) * LENGTH + 1] for n in range(len(packed))]
        facts = manifest(prepared, split)
        assert facts["samples"] == len(packed)
        assert facts["tokens"] == len(packed) * LENGTH
        assert facts["documents"] == len(mine)
        assert facts["tokenizer"] == {
            "file": "tokenizer.model",
            "sha256": tokenizer.digest,
            "vocabulary_size": 300,
        }
        total += len(mine)
    assert total == len(documents())


def test_the_unigram_baseline(prepared: Path) -> None:
    train = Counter(token for block in blocks(prepared, "train") for token in block[1:])
    targets = [token for block in blocks(prepared, "validation") for token in block[1:]]
    total = sum(train.values()) + 300
    expected = -sum(math.log((train[token] + 1) / total) for token in targets) / len(targets)
    assert manifest(prepared, "validation")["unigram_cross_entropy"] == pytest.approx(expected)
    assert manifest(prepared, "train")["unigram_cross_entropy"] is None


def test_a_run_reads_what_was_prepared(prepared: Path) -> None:
    data = TextConfig(
        sources=({"path": str(prepared)},), sequence_length=LENGTH, micro_batch_size=1, global_batch_size=1
    )
    expected = sorted(map(tuple, blocks(prepared, "train")))
    with closing(BatchStream(TextSource(), data, seed=0, data_rank=0, data_size=1)) as stream:
        assert stream.manifest.tokenizer.sha256 == Tokenizer.load(prepared / "tokenizer.model").digest
        steps = [next(stream)[0] for _ in range(stream.samples_per_epoch)]
    read = [(*batch.tokens_BS[0].tolist(), int(batch.targets_BS[0, -1])) for batch in steps]
    assert sorted(read) == expected
    with closing(ValidationSet(TextSource(), data, samples=None, data_rank=0, data_size=1)) as validation:
        assert len(validation) == len(blocks(prepared, "validation"))


def test_processes_write_the_same_bytes_as_one(raw: Path, prepared: Path, tmp_path: Path) -> None:
    assert run(raw, tmp_path / "data", "--shard-samples", "10", workers=2) == 0
    assert contents(tmp_path / "data") == contents(prepared)


def test_made_again_it_is_left_alone(raw: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert run(raw, prepared, "--shard-samples", "10") == 0
    assert "complete already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def test_other_settings_need_overwrite(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    assert run(raw, out) == 0
    before = contents(out)
    assert run(raw, out, "--seed", "1") == 2
    assert "other settings or files (seed differ)" in capsys.readouterr().err
    assert contents(out) == before
    assert run(raw, out, "--seed", "1", "--overwrite") == 0
    assert contents(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_changed_sources_need_overwrite(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.txt"
    source.write_text("".join(documents()) * 2)
    assert run(source, tmp_path / "data", "--validation-fraction", "0") == 0
    source.write_text("".join(documents()) * 3)
    assert run(source, tmp_path / "data", "--validation-fraction", "0") == 2
    assert "(files differ)" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_never_replaced(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert run(raw, tmp_path, "--overwrite") == 2
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_tokenizer_that_is_replaced_meanwhile_is_the_one_that_is_recorded(
    raw: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, survey = Path(shutil.copy(prepared / "tokenizer.model", tmp_path)), text_prepare._survey

    def replaced(*arguments: Any) -> None:
        survey(*arguments)
        path.write_bytes(b"another")

    monkeypatch.setattr(text_prepare, "_survey", replaced)
    words = [
        "--tokenizer",
        str(path),
        "--sequence-length",
        "8",
        "--workers",
        "1",
        "--validation-fraction",
        "0",
    ]
    assert main(["text", str(raw), "--out", str(tmp_path / "out"), *words]) == 0
    kept = (tmp_path / "out" / "tokenizer.model").read_bytes()
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert record["tokenizer"] == hashlib.sha256(kept).hexdigest()


def test_a_given_tokenizer_is_kept_byte_for_byte(raw: Path, prepared: Path, tmp_path: Path) -> None:
    model = prepared / "tokenizer.model"
    options = ["--tokenizer", str(model), "--sequence-length", "8", "--workers", "1"]
    assert (
        main(["text", str(raw), "--out", str(tmp_path / "data"), *options, "--validation-fraction", "0"]) == 0
    )
    assert (tmp_path / "data" / "tokenizer.model").read_bytes() == model.read_bytes()
    assert not (tmp_path / "data" / "validation").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--vocabulary-size", "100000"], 3, "vocabulary size 100000 is too large for the text: at most"),
        (["--vocabulary-size", "200"], 3, "vocabulary size 200 is too small for the text: at least"),
        (
            ["--sequence-length", "100000"],
            3,
            "the train split has .* tokens .* less than one block of 100001",
        ),
        (["--validation-fraction", "0.0001"], 3, "the validation split has 0 tokens in 0 documents"),
    ],
)
def test_what_cannot_be_made_says_why_and_leaves_nothing(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert run(raw, tmp_path / "data", *options) == code
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [["--sequence-length", "0"], ["--validation-fraction", "1"], ["--tokenizer", "x"], ["--bogus"]],
)
def test_a_wrong_command_line_is_code_2(raw: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(raw, tmp_path / "data", *options)
    assert ended.value.code == 2


def test_an_empty_source_is_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").touch()
    assert run(tmp_path / "empty.txt", tmp_path / "data") == 3
    assert "there is no text" in capsys.readouterr().err
    assert run(tmp_path / "none", tmp_path / "data") == 3


@pytest.mark.parametrize("line_end", ["\n", " ", ""], ids=["lines", "one line", "one word"])
def test_a_lone_file_is_cut_so_that_a_part_can_be_held_out(tmp_path: Path, line_end: str) -> None:
    text = line_end.join(" ".join(documents()).split()).replace(" " if not line_end else "\r", "")
    (tmp_path / "book.txt").write_text(text * 3)
    assert run(tmp_path / "book.txt", tmp_path / "data") == 0
    assert manifest(tmp_path / "data", "validation")["documents"] > 0
    tokenizer = Tokenizer.load(tmp_path / "data" / "tokenizer.model")
    for split in ("train", "validation"):
        for block in blocks(tmp_path / "data", split):
            for piece in spelled(block, tokenizer).split(END_OF_TEXT):
                assert piece in text * 3
    summary = json.loads((tmp_path / "data" / "prepare.json").read_text())["summary"]
    assert summary["files"] == summary["cut"] == 1
    assert summary["documents"] > 10


def test_what_is_read_left_out_cut_and_named_twice_is_told_and_recorded(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    for path in raw.iterdir():
        (tmp_path / "raw" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "raw" / "twice.txt").hardlink_to(tmp_path / "raw" / "00.txt")
    (tmp_path / "raw" / "link").symlink_to(raw)
    (tmp_path / "raw" / ".hidden").touch()
    Path(os.fsdecode(os.fsencode(tmp_path / "raw") + b"/caf\xe9\x1b.txt")).write_bytes(b"\xff")
    assert run(tmp_path / "raw", tmp_path / "data") == 0
    size = sum(path.stat().st_size for path in raw.iterdir())
    told = capsys.readouterr()
    assert (
        f"read 24 documents from 24 files of {size:,} bytes; cut 0 texts, left out 3 files or rows, passed over "
        "0 empty rows and 1 second names" in told.out
    )
    assert "caf\\udce9\\x1b.txt: not UTF-8" in told.err
    record = json.loads((tmp_path / "data" / "prepare.json").read_text())
    assert record["summary"] == {
        "files": 24,
        "bytes": size,
        "documents": 24,
        "cut": 0,
        "empty": 0,
        "duplicates": 1,
        "left_out": {HIDDEN: 1, OUTSIDE: 1, "not UTF-8 (invalid start byte)": 1},
    }


def test_output_in_a_source_and_prepared_data_as_a_source(
    raw: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raw, raw / "data") == 2
    assert "lies in the source" in capsys.readouterr().err
    assert not (raw / "data").exists()
    for source in (prepared, prepared / "validation"):
        assert run(source, tmp_path / "data") == 3
        assert "is prepared data, which is no raw data" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_empty_split_is_foreseen(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raw, tmp_path / "data", "--sequence-length", "100000") == 3
    told = capsys.readouterr().err
    assert "at most" in told
    assert "reading for the tokenizer" not in told


def test_names_and_messages_can_always_be_printed(raw: Path, tmp_path: Path) -> None:
    """Also where standard output takes ASCII alone."""
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xc3\xa9\n.txt"))
    source.write_text("".join(documents()) * 3)
    out = tmp_path / "\u4e2d"
    process = spawn(
        source,
        out,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "\\udce4\\udcb8\\udcad/train: " in told


LARGE_OPTIONS = ("--sequence-length", "512")


def spawn(source: object, out: Path, *options: str, **popen: object) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "data_pipeline", "text", str(source), "--out", str(out), *OPTIONS]
    return subprocess.Popen(
        [*argv, *options],
        cwd=REPOSITORY,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C.
        **{"preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL), **popen},
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text to be caught in the middle."""
    path = tmp_path_factory.mktemp("large") / "large.txt"
    path.write_text("".join(f"{number} {text}" for number in range(2000) for text in documents()[:6]))
    return path


def wait_for(condition: object, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [slow(signal.SIGINT), signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_leaves_nothing_that_looks_finished_and_run_again_it_finishes(
    large: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "data"
    for _ in range(5):  # on a busy machine it may have finished before the signal is sent
        process = spawn(large, out, "--workers", "2", *LARGE_OPTIONS)
        wait_for(lambda: list(tmp_path.glob(".data.partial/new/train/*.tar")), process)
        workers = workers_of(process)
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # a terminal's Ctrl-C reaches the workers too
        else:
            process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        shutil.rmtree(out)
    assert not out.exists()
    if how is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 30
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run(large, out, *LARGE_OPTIONS) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert len(blocks(out, "validation")) == manifest(out, "validation")["samples"]


def test_two_at_once_on_one_folder_is_refused(large: Path, tmp_path: Path) -> None:
    process = spawn(large, tmp_path / "data", "--workers", "1", *LARGE_OPTIONS)
    wait_for(lambda: (tmp_path / ".data.partial" / "new" / "tokenizer.model").exists(), process)
    assert run(large, tmp_path / "data", *LARGE_OPTIONS) == 3
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "data" / "prepare.json").exists()


def test_no_room_on_the_disk_is_code_3_and_leaves_nothing(large: Path, tmp_path: Path) -> None:
    """A limit on file sizes fails a write as a full disk does, from outside the process."""
    limit = 500_000
    process = spawn(
        large,
        tmp_path / "data",
        "--workers",
        "1",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "text-000000.tar: File too large" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_real_text(tmp_path: Path) -> None:
    root = Path(os.environ.get("SUREFOOT_DATA", Path(__file__).parents[4] / "shared/data"))
    if not (root / "text").is_dir():
        pytest.skip("SUREFOOT_DATA does not name a folder with real text")
    out = tmp_path / "data"
    options = ["--vocabulary-size", "2000", "--sequence-length", "128", "--workers", "2"]
    assert main(["text", f"{root}/text", "--out", str(out), *options]) == 0
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    text = (root / "text" / "tinyshakespeare" / "input.txt").read_text()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(blocks(out, "train")[0][1:]) in text
    assert len(text) / len(tokenizer.encode(text)) > 2.5
    assert 4 < manifest(out, "validation")["unigram_cross_entropy"] < math.log(2000)
