"""`surefoot translate` and `evaluate`, with a model that has learned a language of six words."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from support.distributed import run_distributed
from support.runs import newest_checkpoint, run_to_end
from support.training import Layout
from support.translation import translation_config

from data_pipeline.__main__ import main as prepare
from parallel.mesh import ParallelMesh
from pretrain.checkpoint.certificate import CERTIFICATE
from pretrain.commands.__main__ import main
from pretrain.config.run import RunConfig
from pretrain.tasks.translation.translator import PairTranslator

WORDS = {"dog": "Hund", "cat": "Katze", "runs": "rennt", "sleeps": "schläft", "red": "rot", "old": "alt"}
SENTENCES = 300
"""All there are, several times."""
VOCABULARY = 340
"""Each word is a piece."""
LONGEST = 12
Command = Callable[..., tuple[int, str, str]]


def sentence(number: int) -> str:
    """It returns one of the 42 sentences of one or two words."""
    first, second = divmod(number % 42, 6)
    return " ".join([*list(WORDS)[first - 1 : first], list(WORDS)[second]])


def translation(line: str) -> str:
    return " ".join(WORDS[word] for word in line.split())


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, alone: ParallelMesh) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs")
    texts = [sentence(number) for number in range(SENTENCES)]
    sides = [
        "--source", lines(folder / "en", texts), "--target", lines(folder / "de", [*map(translation, texts)])
    ]  # fmt: skip
    words = ["translation", *sides, "--vocabulary-size", VOCABULARY, "--out", folder / "data", "--workers", 1]
    assert prepare([*map(str, words), "--validation-fraction", "0.1"]) == 0
    sizes = {
        "source_vocabulary_size": VOCABULARY,
        "target_vocabulary_size": VOCABULARY,
        "label_smoothing": 0,
        "positions": "learned",
    }
    base = translation_config(Layout(), sizes).model_dump(mode="json")
    changes: dict[str, Any] = {
        "run": {"folder": str(folder), "steps": 250},
        "data": {
            "sources": [{"path": str(folder / "data")}],
            "max_source_length": LONGEST,
            "max_target_length": LONGEST,
            "micro_batch_size": 32,
            "global_batch_size": 32,
        },
        "optimizer": {"learning_rate": 5e-3},
        "schedule": {"warmup_steps": 20},
        "checkpoint": {"every_steps": 250},
        "evaluation": {"every_steps": 250},
        "journal": {"console": "none", "tensorboard": False},
    }
    config = RunConfig.model_validate(
        {**base, **{name: {**base[name], **new} for name, new in changes.items()}}
    )
    run_distributed(run_to_end, 1, config)
    return folder / "test"


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, alone: ParallelMesh
) -> Command:
    """It runs a command with text on standard input; returns its exit code, standard output and standard error."""

    def command(name: str, *words: object, text: str | bytes = "") -> tuple[int, str, str]:
        content = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return main([name, *map(str, words)]), *capfd.readouterr()

    return command


def test_it_translates_line_by_line(run: Path, command: Command) -> None:
    texts = [sentence(5 + number * 31) for number in range(40)]
    code, translated, told = command("translate", run, text="".join(f"{text}\n" for text in texts))
    assert code == 0
    assert told == f"surefoot translate: {newest_checkpoint(run.parent)} (certified)\n"
    found = translated.splitlines()
    assert len(found) == 40
    right = sum(line == translation(text) for line, text in zip(found, texts, strict=True))
    assert right >= 36, f"{right} of 40"


@pytest.mark.parametrize("words", [("--batch-size", 1), ("--batch-size", 3), ("--length-penalty", 1)])
def test_how_lines_are_batched_is_not_seen(run: Path, command: Command, words: tuple[object, ...]) -> None:
    text = "".join(f"{sentence(number)}\n" for number in (4, 700, 31, 8, 5555, 90, 123))
    assert command("translate", run, *words, text=text)[1] == command("translate", run, text=text)[1]


def test_a_wide_beam_takes_fewer_sentences_at_once(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sequences are what takes memory."""
    seen: list[int] = []
    read = PairTranslator.read

    def noted(self: PairTranslator, model: Any, sources: Any) -> Any:
        seen.append(len(sources))
        return read(self, model, sources)

    monkeypatch.setattr(PairTranslator, "read", noted)
    text = "dog\ncat\nred cat\nold dog\n"
    assert command("translate", run, "--beam", 500, text=text)[0] == 0
    assert seen == [2, 2]
    command("translate", run, text=text)
    assert seen[2:] == [4]


def test_empty_lines_stay_where_they_are(run: Path, command: Command) -> None:
    _, found, _ = command("translate", run, text="\ndog runs red\n  \n\nold cat sleeps")
    assert [bool(line) for line in found.split("\n")] == [False, True, False, False, True, False]
    assert command("translate", run, text="")[:2] == (0, "")


def test_scores_come_as_json(run: Path, command: Command) -> None:
    _, plain, _ = command("translate", run, text="dog runs red\n\n")
    _, found, _ = command("translate", run, "--json", "--length-penalty", 0.5, text="dog runs red\n\n")
    first, empty = map(json.loads, found.splitlines())
    assert first["source"] == "dog runs red"
    assert first["translation"] == plain.splitlines()[0]
    assert first["log_probability"] < first["score"] < 0  # divided by a number above 1
    assert empty == {"source": "", "translation": "", "log_probability": 0.0, "score": 0.0}


def test_a_line_that_is_too_long(run: Path, command: Command) -> None:
    long = "dog runs red\n" + "dog " * LONGEST + "\n"
    code, found, told = command("translate", run, text=long)
    assert code == 3
    assert len(found.splitlines()) == 1, "what stands before it is translated"
    assert "standard input, line 2: has " in told
    assert f"the model was trained for {LONGEST}" in told
    code, found, _ = command("translate", run, "--cut", text=long)
    assert code == 0
    assert len(found.splitlines()) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--length-penalty", "1e308"),
        ("--length-penalty=-200",),
        ("--length-penalty", "nan"),
        ("--beam", 0),
        ("--beam", 10**30),
        ("--batch-size", 10**30),
    ],
)
def test_numbers_that_cannot_be_computed_with_are_refused(
    run: Path, words: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["translate", str(run), *map(str, words)])
    assert "must be from" in capsys.readouterr().err


def test_a_standard_input_that_cannot_be_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)) as unreadable:
        monkeypatch.setattr(sys, "stdin", unreadable)
        assert main(["translate", str(run)]) == 3
    assert "standard input: Bad file descriptor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"), [(b"dog\nr\xffd\n", "line 2: not UTF-8"), (b"d\0og\n", "line 1: holds NUL bytes")]
)
def test_what_is_no_text_is_refused(run: Path, command: Command, text: bytes, told: str) -> None:
    code, _, error = command("translate", run, text=text)
    assert code == 3
    assert told in error


def test_scores_are_those_of_the_translations(run: Path, command: Command, tmp_path: Path) -> None:
    texts = [sentence(3 + number * 17) for number in range(30)]
    references = [*map(translation, texts[:-5]), *["alt"] * 5]
    files = "--source", lines(tmp_path / "a", texts), "--target", lines(tmp_path / "b", references)
    _, found, _ = command("evaluate", run, *files, "--json")
    _, translated, _ = command("translate", run, text="".join(f"{text}\n" for text in texts))
    scores = json.loads(found)
    expected = sacrebleu.corpus_bleu(translated.splitlines(), [references])
    assert scores["bleu"]["value"] == pytest.approx(expected.score)
    assert 20 < scores["chrf"]["value"] < 100
    assert scores["chrf"]["value"] == pytest.approx(
        sacrebleu.corpus_chrf(translated.splitlines(), [references]).score
    )
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in scores["bleu"]["signature"]
    assert scores["targets"] > 30


def test_a_blank_line_is_translated_to_nothing_in_scores_too(
    run: Path, command: Command, tmp_path: Path
) -> None:
    texts = ["", sentence(30), " \t", sentence(40)]
    _, translated, _ = command("translate", run, text="".join(f"{text}\n" for text in texts))
    source, target = lines(tmp_path / "a", texts), lines(tmp_path / "b", translated.split("\n")[:4])
    files = "--source", source, "--target", target
    assert json.loads(command("evaluate", run, *files, "--json")[1])["chrf"]["value"] == pytest.approx(100)


def test_validation_data_is_translated_too(run: Path, command: Command) -> None:
    code, found, _ = command("evaluate", run)
    assert code == 0
    assert "BLEU" in found
    assert "chrF2" in found
    assert "BLEU" not in command("evaluate", run, "--loss-only")[1]


def test_pairs_that_cannot_be_evaluated(run: Path, command: Command, tmp_path: Path) -> None:
    one, two = lines(tmp_path / "one", ["dog"]), lines(tmp_path / "two", ["Hund", "Katze"])
    long = lines(tmp_path / "long", ["dog " * LONGEST])
    code, _, told = command("evaluate", run, "--source", one)
    assert code == 2
    assert "--source and --target: one needs the other" in told
    code, _, told = command("evaluate", run, "--lm", one)
    assert code == 2
    assert "--lm: means nothing for a model of kind translation" in told
    code, _, told = command("evaluate", run, "--source", one, "--target", one, "--samples", 1)
    assert code == 2
    assert "--samples: is for prepared data" in told
    code, _, told = command("evaluate", run, "--source", one, "--target", two)
    assert code == 3
    assert "has 1 lines" in told
    assert "has 2; line by line" in told
    code, _, told = command("evaluate", run, "--source", long, "--target", one)
    assert code == 3
    assert "pair 1: the source has " in told
    code, _, told = command(
        "evaluate", run, "--source", lines(tmp_path / "none", []), "--target", tmp_path / "none"
    )
    assert code == 3


def test_a_translator_does_not_transcribe(run: Path, command: Command, tmp_path: Path) -> None:
    code, found, told = command("transcribe", run, tmp_path / "audio.wav")
    assert (code, found) == (2, "")
    assert "holds a model of kind translation, which is none that transcribes" in told


def test_an_export_translates(run: Path, command: Command, tmp_path: Path) -> None:
    assert command("export", run, "--to", "safetensors", "--out", tmp_path / "out")[0] == 0
    text = "dog runs red\nold cat\n"
    assert command("translate", tmp_path / "out", text=text)[1] == command("translate", run, text=text)[1]


def test_a_newer_checkpoint_is_told(run: Path, command: Command, tmp_path: Path) -> None:
    """What is used is the newest certified one, which may be old after a run that was stopped."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    newest = newest_checkpoint(tmp_path, "run")
    newer = Path(shutil.copytree(newest, newest.with_name("step00000260-a2")))
    (newer / CERTIFICATE).unlink()
    told = command("translate", copied)[2]
    assert told == f"surefoot translate: {newest} (certified); {newer.name} is newer, and not certified\n"
    (newer / CERTIFICATE).touch()
    (newer / "MANIFEST.json").write_text("{")
    told = command("translate", copied)[2]
    assert f"{newer.name} is newer, and damaged: {newer / 'MANIFEST.json'}: " in told
    assert "is newer" not in command("translate", newest)[2]
    (newer / "MANIFEST.json").unlink()
    told = command("translate", copied)[2]
    assert f"{newest} (certified); {newer.name} is newer, and has no MANIFEST.json: it is being saved" in told
