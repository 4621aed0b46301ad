"""`surefoot prepare speech` from corpora of all formats to shards, and what it leaves out or refuses."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from support.speech import RATE, tone, wav, write_manifest

from data_pipeline.__main__ import main
from data_pipeline.speech.prepare import held_out
from data_pipeline.speech.units import read_units

SPEAKERS = ("ann", "bob", "eve", "joe")
OPTIONS = ("--workers", "1", "--sample-rate", RATE, "--seed", 1)


def row(name: str, text: str = "one two", **more: object) -> dict[str, object]:
    return {"audio_filepath": name, "text": text, **more}


def corpus(folder: Path, utterances: int = 20) -> list[dict[str, object]]:
    """It writes recordings by four speakers, and returns the rows of their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(utterances):
        (folder / f"{number}.wav").write_bytes(wav(tone(0.5 + number / 50, 300 + number)))
    return [
        row(f"{number}.wav", f"number {number}", speaker=SPEAKERS[number % 4]) for number in range(utterances)
    ]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, object]]:
    return corpus(tmp_path / "raw")


def listed(folder: Path, rows: Sequence[Mapping[str, object]], name: str = "list.jsonl") -> Path:
    return write_manifest(folder / "raw" / name, rows)


def run(out: Path, *words: object) -> int:
    return main(["speech", "--out", str(out), *map(str, (*OPTIONS, *words))])


def manifest(out: Path, split: str = "train") -> dict[str, Any]:
    return dict(json.loads((out / split / "manifest.json").read_text()))


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "prepare.json").read_text())["summary"])


def utterances(out: Path, split: str = "train") -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """What a plain webdataset reads: transcripts and audio."""
    units = read_units(lambda name: (out / name).read_bytes())
    urls = [str(path) for path in sorted((out / split).glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        samples_N, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        assert rate == manifest(out)["sample_rate"]
        yield units.decode(np.frombuffer(sample["units"], "<u2").tolist()), samples_N


def transcripts(out: Path, split: str = "train") -> list[str]:
    return [text for text, _ in utterances(out, split)]


def test_a_manifest_becomes_shards(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    out = tmp_path / "out"
    assert (
        run(out, "--manifest", listed(tmp_path, rows), "--validation-fraction", 0, "--shard-samples", 8) == 0
    )
    found = list(utterances(out))
    assert [text for text, _ in found] == [f"number {number}" for number in range(20)]
    for number, (_, samples_N) in enumerate(found):
        assert np.array_equal(samples_N, tone(0.5 + number / 50, 300 + number))
    facts, lengths = manifest(out), np.load(out / "train/lengths.npy")
    assert lengths.tolist() == [[len(samples_N), len(text)] for text, samples_N in found]
    assert [shard["samples"] for shard in facts["shards"]] == [8, 8, 4]
    assert facts["longest_seconds"] == lengths[:, 0].max() / RATE
    assert facts["seconds"] == lengths[:, 0].sum() / RATE
    assert facts["unit_total"] == lengths[:, 1].sum()
    assert facts["units"]["count"] == 1 + len({*"number 0123456789"})
    assert not (out / "validation").exists()


def test_the_same_is_made_by_any_number_of_workers(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    for workers in (1, 2):
        assert run(tmp_path / f"{workers}", "--manifest", listed(tmp_path, rows), "--workers", workers) == 0
    for split in ("train", "validation"):
        assert manifest(tmp_path / "1", split) == manifest(tmp_path / "2", split)


def test_a_second_run_says_that_all_is_there(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--manifest", listed(tmp_path, rows)]
    assert run(tmp_path / "out", *words) == 0
    assert run(tmp_path / "out", *words) == 0
    assert "out: complete already, made with the same settings" in capsys.readouterr().out
    (tmp_path / "raw/3.wav").write_bytes(wav(tone(0.9, 200)))
    assert run(tmp_path / "out", *words) == 2
    assert "made with other settings or files (audio differ)" in capsys.readouterr().err
    assert run(tmp_path / "out", *words, "--overwrite") == 0


def test_whole_speakers_are_held_out(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", "--manifest", listed(tmp_path, rows), "--validation-fraction", 0.3) == 0
    numbers = [int(text.split()[1]) for text in transcripts(tmp_path / "out", "validation")]
    assert len(numbers) == 5
    assert len({number % 4 for number in numbers}) == 1
    assert f"held out speaker {SPEAKERS[numbers[0] % 4]}\n" in capsys.readouterr().out


def test_without_speakers_whole_recordings_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(10):
        (tmp_path / f"raw/{number}.wav").write_bytes(wav(tone(2.0, 300 + number)))
    parts = [
        row(f"{number}.wav", "part", offset=half, duration=1.0) for number in range(10) for half in (0.0, 1.0)
    ]
    assert run(tmp_path / "out", "--manifest", listed(tmp_path, parts), "--validation-fraction", 0.25) == 0
    first, second, *others = [samples_N for _, samples_N in utterances(tmp_path / "out", "validation")]
    assert len(others) == 2
    whole = [tone(2.0, 300 + number) for number in range(10)]
    assert any(np.array_equal(np.concatenate([first, second]), one) for one in whole)


def test_what_is_held_out_is_at_most_the_share_but_something() -> None:
    groups = {f"speaker {number}": 10 + number for number in range(20)}
    for share in (0.001, 0.1, 0.5):
        for seed in range(5):
            chosen = held_out(groups, share, seed)
            count = sum(groups[group] for group in chosen)
            assert count <= share * sum(groups.values()) or chosen == {"speaker 0"}
            assert chosen
    assert len({held_out(groups, 0.2, seed) for seed in range(5)}) > 1
