"""`surefoot prepare speech` from corpora of all formats to shards, and what it leaves out or refuses."""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from support.speech import RATE, encoded, tone, wav, write_manifest

from data_pipeline.__main__ import main
from data_pipeline.speech import prepare
from data_pipeline.speech.prepare import held_out
from data_pipeline.speech.units import CharacterUnits, read_units
from data_pipeline.text.tokenizer import train_tokenizer

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


@pytest.mark.slow
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


def test_validation_is_what_is_named(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    words = ["--manifest", listed(tmp_path, rows[:15], "a.jsonl")]
    words += [
        "--validation-manifest",
        listed(tmp_path, rows[15:19], "b.jsonl"),
        listed(tmp_path, rows[19:], "c.jsonl"),
    ]
    assert run(tmp_path / "out", *words, "--alphabet", "number 0123456789") == 0
    assert transcripts(tmp_path / "out") == [f"number {number}" for number in range(15)]
    assert transcripts(tmp_path / "out", "validation") == [f"number {number}" for number in range(15, 20)]


def test_one_voice_cannot_be_held_out(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--manifest", listed(tmp_path, rows[::4])]
    assert run(tmp_path / "out", *words) == 3
    assert "all 5 utterances are of one speaker or recording" in capsys.readouterr().err
    assert run(tmp_path / "out", *words, "--validation-fraction", 0) == 0


def test_copies_are_counted(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    """They stay: what is given is not for us to judge. One is there with another transcript, and is none."""
    train = listed(tmp_path, [*rows, rows[3], rows[3], {**rows[3], "text": "number 1"}], "a.jsonl")
    assert (
        run(tmp_path / "out", "--manifest", train, "--validation-manifest", listed(tmp_path, rows[:4])) == 0
    )
    said = capsys.readouterr().out
    assert re.search(
        r"out/train: 23 utterances .*\n  there already, with the same audio and transcript: 2\n", said
    )
    assert re.search(r"out/validation: 4 utterances .*\n  in train as well: 4\n", said)
    assert summary(tmp_path / "out")["repeated"] == {"train": 2, "validation": 0}


# Transcripts


def test_transcripts_are_spelled_alike(tmp_path: Path) -> None:
    corpus(tmp_path / "raw", 2)
    rows = [row("0.wav", " Two\twords\u00a0here "), row("1.wav", "cafe\u0301 \u0130")]
    words = ["--manifest", listed(tmp_path, rows), "--validation-fraction", 0]
    assert run(tmp_path / "out", *words) == 0
    assert transcripts(tmp_path / "out") == ["Two words here", "caf\u00e9 \u0130"]
    assert run(tmp_path / "low", *words, "--lowercase") == 0
    assert transcripts(tmp_path / "low") == ["two words here", "caf\u00e9 i\u0307"]


def test_pieces_are_units_too(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    words = ["--manifest", listed(tmp_path, rows), "--validation-fraction", 0]
    assert run(tmp_path / "out", *words, "--units", "pieces", "--vocabulary-size", 280) == 0
    assert transcripts(tmp_path / "out") == [f"number {number}" for number in range(20)]
    assert manifest(tmp_path / "out")["units"] == {
        "file": "units.model",
        "sha256": manifest(tmp_path / "out")["units"]["sha256"],
        "count": 280,
    }
    assert manifest(tmp_path / "out")["unit_total"] < 20 * len("number 1")


def test_units_can_be_those_of_other_data(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    """Of a file of either kind, also of a tokenizer for text."""
    words = ["--manifest", listed(tmp_path, rows), "--validation-fraction", 0]
    files = {
        "units.json": CharacterUnits("abcdefghijklmnopqrstuvwxyz 0123456789").content,
        "tokenizer.model": train_tokenizer(["number one two 3 4 5"] * 9, 280).model,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert run(tmp_path / f"out-{name}", *words, "--units", tmp_path / name) == 0
        file = manifest(tmp_path / f"out-{name}")["units"]["file"]
        assert (tmp_path / f"out-{name}" / file).read_bytes() == content
        assert transcripts(tmp_path / f"out-{name}") == [f"number {number}" for number in range(20)]
    (tmp_path / "none").write_bytes(b"{}")
    assert run(tmp_path / "out", *words, "--units", tmp_path / "none") == 3


def test_all_that_decides_is_recorded(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    words = ["--manifest", listed(tmp_path, rows)]
    assert run(tmp_path / "out", *words) == 0
    for others in (
        ["--sample-rate", 16_000],
        ["--channel", 0],
        ["--max-seconds", 30],
        ["--units", "pieces"],
        ["--alphabet", "number 0123456789"],
        ["--lowercase"],
        ["--frame-seconds", 0.04],
        ["--left-out-budget", 0.5],
        ["--validation-fraction", 0.5],
        ["--shard-samples", 9],
        ["--seed", 2],
        ["--validation-manifest", listed(tmp_path, rows, "other.jsonl")],
    ):
        assert run(tmp_path / "out", *words, *others) == 2, others


def changed_meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """`change` is called when all lists have been read, and no recording yet."""
    encoding = prepare.Encoding

    def begin(*arguments: Any) -> prepare.Encoding:
        change()
        return encoding(*arguments)

    monkeypatch.setattr(prepare, "Encoding", begin)


@pytest.mark.parametrize("change", ["another", "removed", "written to"])
def test_new_audio_never_gets_the_transcript_of_the_old(
    tmp_path: Path,
    rows: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    recording = tmp_path / "raw" / "13.wav"
    (tmp_path / "other").write_bytes(wav(tone(0.9, 900)))
    changes: dict[str, Callable[[], object]] = {
        "another": lambda: (tmp_path / "other").rename(recording),
        "removed": recording.unlink,
        "written to": lambda: recording.write_bytes(wav(tone(0.9, 900))),
    }
    changed_meanwhile(monkeypatch, changes[change])
    words = ["--manifest", listed(tmp_path, [*rows, *rows[::-1]]), "--left-out-budget", "0.5"]
    assert run(tmp_path / "out", *words) == 3
    assert "13.wav: has changed while it was read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_units_stay_those_that_are_recorded(
    tmp_path: Path, rows: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    units, other = CharacterUnits([*" 0123456789bemnru"]), CharacterUnits([*" 0123456789bemnruxyz"])
    (tmp_path / "units").write_bytes(units.content)
    look = prepare._Work.make

    def make(work: prepare._Work, folder: Path) -> prepare.Prepared:
        (tmp_path / "units").write_bytes(other.content)
        return look(work, folder)

    monkeypatch.setattr(prepare._Work, "make", make)
    assert run(tmp_path / "out", "--manifest", listed(tmp_path, rows), "--units", tmp_path / "units") == 3


# What is left out


BAD: dict[str, tuple[bytes | None, dict[str, object], str]] = {
    "silent": (wav(np.zeros(8000, np.int16)), {}, "is silent"),
    "empty": (wav(np.zeros(0, np.int16)), {}, "holds no audio"),
    "nothing": (b"", {}, "is an empty file"),
    "missing": (None, {}, "cannot be read: No such file or directory"),
    "cut": (wav(tone(1.0))[:-5000], {}, "is cut: it is shorter than its header says"),
    "broken": (encoded(tone(1.0), "FLAC", "PCM_16")[:-500], {}, "is damaged, or no audio"),
    "text": (b"one two three four", {}, "is no WAV, FLAC or Ogg"),
    "long": (wav(tone(5.1)), {}, "is longer than 5 s"),
    "nan": (encoded(np.full(8000, np.nan, np.float32), "WAV", "FLOAT"), {}, "no numbers (NaN or infinite)"),
    "outside": (wav(tone(1.0)), {"text": "number \u03c0"}, "has characters that are no units"),
    "unsaid": (wav(tone(1.0)), {"text": "  "}, "has no transcript"),
    "untold": (wav(tone(1.0)), {"text": None}, "has no transcript"),
    "control": (wav(tone(1.0)), {"text": "a\u001bb"}, "has a transcript with control characters"),
    "quick": (wav(tone(0.2)), {}, "is too short for its transcript, with 0.033 s a unit"),
    "beyond": (wav(tone(1.0)), {"offset": 0.5, "duration": 2.0}, "ends before the span that is meant"),
}
"""Name -> file, what its row has, and the reason."""


def spoiled(folder: Path, rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """It returns rows with one of each kind among them, that cannot be used."""
    for name, (content, _, _) in BAD.items():
        if content is not None:
            (folder / "raw" / name).write_bytes(content)
    return [
        *rows[:10],
        *(row(name, **{"text": "number 1", **keys}) for name, (_, keys, _) in BAD.items()),
        *rows[10:],
    ]


STRICT = ["--max-seconds", 5, "--alphabet", "number 0123456789", "--validation-fraction", 0]


def test_each_bad_utterance_is_named_with_its_reason_and_nothing_else_is_lost(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path, spoiled(tmp_path, rows))
    assert run(tmp_path / "out", "--manifest", path, *STRICT, "--left-out-budget", 0.5) == 0
    printed = capsys.readouterr()
    assert transcripts(tmp_path / "out") == [f"number {number}" for number in range(20)]
    for name, (_, _, reason) in BAD.items():
        (line,) = [line for line in printed.err.splitlines() if f" {name} ({path}, line" in line]
        assert line.startswith("left out: ")
        assert reason in line
    left_out = summary(tmp_path / "out")["left_out"]["train"]
    assert sum(left_out.values()) == len(BAD)
    for reason, count in left_out.items():
        assert f"  left out, since it {reason}: {count}\n" in printed.out


@pytest.mark.parametrize("name", BAD)
def test_more_than_the_budget_ends_the_command(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    bad = [row for row in spoiled(tmp_path, rows) if row["audio_filepath"] == name]
    path = listed(tmp_path, [*rows, *bad])
    assert run(tmp_path / "out", "--manifest", path, *STRICT) == 3
    said = capsys.readouterr().err
    assert "1 of 21 utterances cannot be used so far, more than --left-out-budget 0.01 allows: 1 " in said
    assert f"(first {name} ({path}, line 21" in said
    assert BAD[name][2] in said
    assert not (tmp_path / "out").exists()


def test_room_is_left_for_blanks_between_equal_units(tmp_path: Path) -> None:
    """With 0.04 s a frame, 0.4 s have room for ten units and blanks."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a").write_bytes(wav(tone(0.4)))
    rows = [row("a", text) for text in ("abababababa", "ababababab", "aaaaaa", "aaaaab", "abaaab", "aabbccc")]
    words = ["--manifest", listed(tmp_path, rows), "--validation-fraction", 0, "--frame-seconds", 0.04]
    assert run(tmp_path / "out", *words, "--left-out-budget", 0.9) == 0
    assert transcripts(tmp_path / "out") == ["ababababab", "aaaaab", "abaaab"]


def test_what_is_held_out_chooses_no_units(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--manifest", listed(tmp_path, rows), "--validation-manifest"]
    words += [listed(tmp_path, [*rows[:9], {**rows[0], "text": "\u03c0"}], "b.jsonl")]
    assert run(tmp_path / "out", *words, "--left-out-budget", 0.1) == 0
    assert "\u03c0" not in (tmp_path / "out/units.json").read_text()
    assert "has characters that are no units: 1\n" in capsys.readouterr().out


def test_what_is_done_to_audio_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    stereo = np.stack([tone(1.0, 300), tone(1.0, 400)], 1)
    loud = (1.5 * np.sin(np.arange(8000) / 9)).astype(np.float32)
    files = {
        "plain": wav(tone(1.0)),
        "stereo": wav(stereo),
        "fast": wav(tone(1.0, rate=16_000), 16_000),
        "slow": wav(tone(1.0, 100, rate=4_000), 4_000),
        "loud": encoded(loud, "WAV", "FLOAT"),
        "deep": encoded(tone(1.0, 600), "FLAC", "PCM_24"),
        "lossy": encoded(tone(1.0), "OGG", "VORBIS"),
    }
    for name, content in files.items():
        (tmp_path / "raw" / name).write_bytes(content)
    path = listed(tmp_path, [row(name) for name in files])
    assert run(tmp_path / "out", "--manifest", path, "--validation-fraction", 0) == 0
    assert summary(tmp_path / "out")["changes"]["train"] == {
        "mean of 2 channels taken": 1,
        "resampled from 16000 Hz": 1,
        "resampled from 4000 Hz": 1,
        "rounded to 16 bits": 2,
        "clipped": 1,
    }
    assert "  mean of 2 channels taken: 1\n  resampled from 16000 Hz: 1\n" in capsys.readouterr().out
    assert run(tmp_path / "left", "--manifest", path, "--validation-fraction", 0, "--channel", 1) == 0
    (_, second_N) = list(utterances(tmp_path / "left"))[1]
    assert np.array_equal(second_N, stereo[:, 1])


def test_a_split_without_utterances_says_why(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw/silent").write_bytes(wav(np.zeros(8000, np.int16)))
    words = [
        "--manifest",
        listed(tmp_path, rows),
        "--validation-manifest",
        listed(tmp_path, [row("silent", "number 1")], "v"),
    ]
    assert run(tmp_path / "out", *words, "--left-out-budget", 0.9) == 3
    assert "the validation split has no utterance (1 left out: is silent)" in capsys.readouterr().err
    (tmp_path / "none.jsonl").touch()
    assert run(tmp_path / "out", "--manifest", tmp_path / "none.jsonl") == 3
    assert "the corpora of the train split list no utterance" in capsys.readouterr().err


# The command line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name a corpus with --manifest, --librispeech, --kaldi, --lhotse"),
        (
            ["--manifest", "x", "--alphabet", "ab", "--units", "pieces"],
            "--alphabet is for --units characters",
        ),
        (["--manifest", "x", "--sample-rate", "96000"], "96000 is not from 1000 to 65535"),
        (["--manifest", "x", "--channel", "-1"], "-1 is below 0"),
        (["--manifest", "x", "--max-seconds", "nan"], "nan is not from 0.1 to 86400"),
        (["--manifest", "x", "--frame-seconds", "0"], "0 is not from 0.001 to 1"),
        (["--manifest", "x", "--vocabulary-size", "70000"], "70000 is above 65536"),
        (["--manifest", "x", "--left-out-budget", "1"], "1 is not in [0, 1)"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "out", *words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_nothing_that_is_read_is_replaced(
    tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path, rows)
    elsewhere = write_manifest(
        tmp_path / "list.jsonl", [{**one, "audio_filepath": f"raw/{one['audio_filepath']}"} for one in rows]
    )
    assert run(tmp_path / "raw", "--manifest", path, "--overwrite") == 2
    assert f"holds the source {path}" in capsys.readouterr().err
    assert run(tmp_path / "raw", "--manifest", elsewhere, "--overwrite") == 2
    assert f"holds audio that is read, in {tmp_path / 'raw'}; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "raw/0.wav").exists()


@pytest.mark.slow
def test_spoken_digits_are_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recordings of the Free Spoken Digit Dataset; the indexes 0 to 4 are the usual test split."""
    root = Path(os.environ.get("SUREFOOT_DATA", Path(__file__).parents[4] / "shared/data"))
    if not (archive := root / "speech/fsdd.tar").exists():
        pytest.skip("SUREFOOT_DATA does not name a folder with speech")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "raw", filter="data")
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    lists: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    for path in sorted((tmp_path / "raw").rglob("*.wav")):
        digit, speaker, index = path.stem.split("_")
        lists[int(index) < 5].append(row(str(path), names[int(digit)], speaker=speaker))
    words = [
        "--manifest",
        listed(tmp_path, lists[False], "a"),
        "--validation-manifest",
        listed(tmp_path, lists[True], "b"),
    ]
    assert run(tmp_path / "out", *words) == 0
    train, validation = manifest(tmp_path / "out"), manifest(tmp_path / "out", "validation")
    assert (train["samples"], validation["samples"]) == (2243, 250)
    assert summary(tmp_path / "out")["left_out"]["train"].popitem()[1] == 7
    assert train["units"]["count"] == 1 + len({*"".join(names)})
    assert "250 utterances of 0.03 hours at 8000 Hz" in capsys.readouterr().out
