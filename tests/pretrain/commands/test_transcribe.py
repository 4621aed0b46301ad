"""`surefoot transcribe` and `evaluate`, with a model that has learned a language of four tones on two ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.distributed import run_distributed
from support.runs import metrics, newest_checkpoint, run_to_end
from support.speech import RATE, Samples, tone, wav, write_manifest
from support.speech_model import speech_config
from support.training import Layout

from data_pipeline.__main__ import main as prepare
from parallel.mesh import ParallelMesh
from pretrain.commands.__main__ import main
from pretrain.config.run import RunConfig
from pretrain.tasks.speech.language_model import KENLM

PITCHES = {"a": 300.0, "b": 600.0, "c": 1100.0, "d": 2000.0}
WORDS = ("ab", "cd", "da", "bc", "ac")
SENTENCES = 150
MAX_SECONDS = 2.0
Command = Callable[..., tuple[int, str, str]]


def sentence(number: int) -> str:
    """It returns one of the sentences of two or three words."""
    words = [WORDS[number // place % len(WORDS)] for place in (1, 5, 25)]
    return " ".join(words[: 2 + number % 2])


def spoken(text: str) -> Samples:
    """It returns a tone for each letter, and a pause for each space."""
    return np.concatenate(
        [tone(0.09, PITCHES[char]) if char in PITCHES else tone(0.09, 20.0) // 50 for char in text]
    )


def recorded(path: Path, text: str, rate: int = RATE) -> Path:
    path.write_bytes(wav(spoken(text), rate))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, alone: ParallelMesh) -> Path:
    """The folder of a run on two tensor-parallel ranks."""
    folder = tmp_path_factory.mktemp("runs")
    rows = []
    (folder / "audio").mkdir()
    for number in range(SENTENCES):
        path = recorded(folder / f"audio/{number}.wav", sentence(number))
        rows.append({"audio_filepath": str(path), "text": sentence(number)})
    words = ["speech", "--manifest", write_manifest(folder / "all.jsonl", rows), "--sample-rate", RATE]
    words += [
        "--out",
        folder / "data",
        "--workers",
        1,
        "--validation-fraction",
        0.1,
        "--left-out-budget",
        0.9,
    ]
    assert prepare([*map(str, words)]) == 0
    base = speech_config(Layout(tensor=2), {"num_layers": 2, "vocabulary_size": 6}).model_dump(mode="json")
    changes: dict[str, Any] = {
        "run": {"folder": str(folder), "steps": 60},
        "data": {
            "sources": [{"path": str(folder / "data")}],
            "max_seconds": MAX_SECONDS,
            "micro_batch_size": 16,
            "global_batch_size": 16,
        },
        "optimizer": {"learning_rate": 5e-3},
        "schedule": {"warmup_steps": 10},
        "checkpoint": {"every_steps": 60},
        "evaluation": {"every_steps": 60},
        "journal": {"console": "none", "tensorboard": False},
    }
    config = RunConfig.model_validate(
        {**base, **{name: {**base[name], **new} for name, new in changes.items()}}
    )
    run_distributed(run_to_end, 2, config)
    return folder / "test"


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], alone: ParallelMesh) -> Command:
    """It runs a command; returns its exit code, standard output and standard error."""

    def command(*words: object) -> tuple[int, str, str]:
        return main([*map(str, words)]), *capfd.readouterr()

    return command


def test_validation_has_told_error_rates(run: Path) -> None:
    """Its examples are transcribed greedily by the ranks that train."""
    assert metrics(run.parent, "validation_wer") == {60: pytest.approx(0, abs=0.1)}
    assert metrics(run.parent, "validation_cer").keys() == {60}


def test_a_recording_is_a_line(run: Path, command: Command, tmp_path: Path) -> None:
    code, found, told = command("transcribe", run, recorded(tmp_path / "one.wav", "ab cd da"))
    assert (code, found) == (0, "ab cd da\n")
    assert told == f"surefoot transcribe: {newest_checkpoint(run.parent)} (certified)\n"


def test_several_are_named_in_the_order_given(run: Path, command: Command, tmp_path: Path) -> None:
    """Of lengths that are sorted otherwise, and however they are taken together."""
    texts = {"b.wav": "bc ab ab", "a.flac": "da ab", "c.wav": "ac cd bc", "x y.wav": "cd ab"}
    files = [recorded(tmp_path / name, text) for name, text in texts.items()]
    expected = "".join(f"{file}\t{text}\n" for file, text in zip(files, texts.values(), strict=True))
    for words in ([], ["--batch-size", 1], ["--batch-size", 3], ["--beam", 1]):
        assert command("transcribe", run, *files, *words)[:2] == (0, expected)


def test_other_rates_and_channels_are_heard(run: Path, command: Command, tmp_path: Path) -> None:
    samples_N = spoken("ab cd da")
    (tmp_path / "stereo.wav").write_bytes(wav(np.stack([samples_N, samples_N], axis=1)))
    (tmp_path / "fast.wav").write_bytes(wav(samples_N.repeat(2), 2 * RATE))
    _, found, _ = command("transcribe", run, tmp_path / "stereo.wav", tmp_path / "fast.wav")
    assert [line.split("\t")[1] for line in found.splitlines()] == ["ab cd da"] * 2


def test_files_that_cannot_be_used_are_named_and_the_others_done(
    run: Path, command: Command, tmp_path: Path
) -> None:
    good = recorded(tmp_path / "good.wav", "ab cd")
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "long.wav").write_bytes(wav(tone(MAX_SECONDS + 1)))
    (tmp_path / "silent.wav").write_bytes(wav(tone(0.5) * 0))
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:-1000])
    bad = [tmp_path / f"{name}.wav" for name in ("text", "long", "none", "silent", "cut")]
    code, found, told = command("transcribe", run, *bad[:2], good, *bad[2:])
    assert (code, found) == (3, f"{good}\tab cd\n")
    lines = told.splitlines()[1:]
    assert all(f"error: {path}: " in line for path, line in zip(bad, lines, strict=True))
    assert "is longer than 2 s (3.0 s)" in lines[1]
    assert "cut it" in lines[1]
    code, found, _ = command("transcribe", run, *bad[:2], good, "--json")
    rows = [json.loads(line) for line in found.splitlines()]
    assert code == 3
    assert [row.get("transcript") for row in rows] == [None, None, "ab cd"]
    assert all("error" in row for row in rows[:2])


def test_units_have_times_as_json(run: Path, command: Command, tmp_path: Path) -> None:
    path = recorded(tmp_path / "one.wav", "ab cd da")
    _, found, _ = command("transcribe", run, path, "--json")
    row = json.loads(found)
    assert row["file"] == str(path)
    assert "".join(unit["unit"] for unit in row["units"]) == row["transcript"] == "ab cd da"
    assert row["score"] == row["log_probability"] < 0
    ends = [unit["end"] for unit in row["units"]]
    assert ends == sorted(ends)
    # Each was said for 0.09 seconds.
    assert [unit["start"] for unit in row["units"]] == pytest.approx(
        [0.09 * place for place in range(8)], abs=0.07
    )


def test_error_rates_of_validation_data(run: Path, command: Command, tmp_path: Path) -> None:
    code, found, _ = command("evaluate", run, "--json", "--alignments", tmp_path / "alignments")
    assert code == 0
    scores = json.loads(found)
    assert scores["loss"] == pytest.approx(metrics(run.parent, "validation_loss")[60], rel=1e-5)
    words = scores["wer"]
    assert words["hits"] + words["substitutions"] + words["deletions"] > 20
    assert words["value"] < 0.1
    assert "jiwer-" in words["signature"]
    blocks = (tmp_path / "alignments").read_text().strip().split("\n\n")
    hits = [int(block.splitlines()[1].split()[5]) for block in blocks]
    assert sum(hits) == words["hits"]
    assert all("validation/speech-000000.tar: sample " in block for block in blocks)
    assert len(blocks) == 15, "all of them, and no padding"


def test_people_read_the_same_and_may_leave_it_out(run: Path, command: Command) -> None:
    _, found, _ = command("evaluate", run, "--beam", 1)
    assert "%WER" in found
    assert "%CER" in found
    assert " ins, " in found
    assert "%WER" not in command("evaluate", run, "--loss-only")[1]


ARPA = """\\data\\
ngram 1=5
ngram 2=1

\\1-grams:
-9\t<unk>
0\t<s>\t0
-0.7\t</s>
-0.5\tac\t0
-0.6\tbc\t0

\\2-grams:
-0.3\tac bc

\\end\\
"""


@pytest.mark.skipif(not KENLM.usable, reason="kenlm is not installed")
def test_language_model_takes_part(run: Path, command: Command, tmp_path: Path) -> None:
    """With what a word costs here, one is best, whatever the model of speech says of the pause."""
    (tmp_path / "words.arpa").write_text(ARPA)
    path = recorded(tmp_path / "one.wav", "ab cd")
    words = ["--lm", tmp_path / "words.arpa", "--lm-weight", 0.01, "--word-bonus", -100]
    assert command("transcribe", run, path, *words)[:2] == (0, "abcd\n")
    code, _, told = command("evaluate", run, *words)
    assert code == 0, told
    (tmp_path / "words.arpa").write_text("no model")
    assert command("transcribe", run, path, *words)[0] == 3


@pytest.mark.parametrize("words", [("--lm-weight", 1), ("--word-bonus", 0)])
def test_weights_are_for_a_language_model(run: Path, command: Command, words: tuple[object, ...]) -> None:
    for name, more in (("transcribe", [run / "any.wav"]), ("evaluate", [])):
        code, found, told = command(name, run, *more, *words)
        assert (code, found) == (2, "")
        assert f"{words[0]}: is for a language model; give --lm FILE" in told


@pytest.mark.parametrize(
    "words", [("--beam", 0), ("--lm-weight", "nan"), ("--word-bonus", "1e9"), ("--batch-size", 10**30)]
)
def test_numbers_that_cannot_be_computed_with_are_refused(
    run: Path, words: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["transcribe", str(run), "any.wav", *map(str, words)])
    assert "must be from" in capsys.readouterr().err


def test_an_export_transcribes(run: Path, command: Command, tmp_path: Path) -> None:
    assert command("export", run, "--to", "safetensors", "--out", tmp_path / "out")[0] == 0
    path = recorded(tmp_path / "one.wav", "ab cd da")
    code, found, told = command("transcribe", tmp_path / "out", path)
    assert (code, found) == (0, "ab cd da\n"), told


def test_text_is_nothing_to_hear(run: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("ab cd")
    code, _, told = command("evaluate", run, "--text", tmp_path / "text")
    assert code == 2
    assert "a model of kind speech reads no text of its own" in told
