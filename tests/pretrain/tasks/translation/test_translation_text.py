"""Sentences and their ids, and the scores of translations."""

import gzip
import os
import subprocess
import sys
from collections.abc import Sequence
from math import exp
from pathlib import Path

import pytest
from support.training import Layout
from support.translation import translation_config

from data_pipeline.text.tokenizer import Tokenizer, train_tokenizer
from pretrain.tasks.translation.scores import scores
from pretrain.tasks.translation.text import PairCodec
from pretrain.tasks.translation.translator import PairTranslator

ENGLISH = ["two dogs run in the snow", "a man rides an old red bicycle", "children play by the water"]
SIZE = 300
GERMAN = ["Zwei Hunde laufen im Schnee.", "Ein Mann fährt ein altes rotes Fahrrad.", "Kinder am Wasser"]
HYPOTHESES = [
    "Zwei Hunde rennen im Schnee.",
    "Ein Mann fährt ein altes Fahrrad.",
    "Kinder spielen  am Wasser",
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    sides = {"source.model": ENGLISH, "target.model": GERMAN}
    return {name: train_tokenizer(texts * 5, SIZE) for name, texts in sides.items()}


@pytest.fixture
def codec(tokenizers: dict[str, Tokenizer]) -> PairCodec:
    return PairCodec(lambda name: tokenizers[name].model, (SIZE, SIZE))


def test_either_side_has_its_tokenizer(codec: PairCodec, tokenizers: dict[str, Tokenizer]) -> None:
    source, target = tokenizers["source.model"], tokenizers["target.model"]
    assert codec.encode(ENGLISH[0]) == [*source.encode(ENGLISH[0]), source.end_of_text]
    assert codec.decode(target.encode(GERMAN[0])) == GERMAN[0]
    assert codec.end_of_text == target.end_of_text


def test_sentence_ends_at_the_first_end_of_text(codec: PairCodec, tokenizers: dict[str, Tokenizer]) -> None:
    ids = tokenizers["target.model"].encode(GERMAN[0])
    assert codec.decode([*ids, codec.end_of_text, *ids, codec.end_of_text]) == GERMAN[0]
    assert codec.decode([codec.end_of_text, *ids]) == ""
    assert codec.decode([]) == ""


def test_anything_that_a_model_says_is_decoded(codec: PairCodec, tokenizers: dict[str, Tokenizer]) -> None:
    target = tokenizers["target.model"]
    ids = target.encode("Hund")
    for nothing in (0, target.vocabulary_size, 10**9, -1):
        assert codec.decode([nothing, *ids, nothing]) == "Hund"
    half = target.encode("\N{PAW PRINTS}")[:2]
    assert codec.decode([*ids, *half]) == "Hund\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    for token in range(target.vocabulary_size):
        codec.decode([token])


def test_a_blank_source_is_nothing_to_be_translated(codec: PairCodec, tmp_path: Path) -> None:
    translator = PairTranslator(codec, translation_config(Layout()).data)
    (tmp_path / "source").write_text("\ntwo dogs\n \t\n")
    (tmp_path / "target").write_text("Zwei\nHunde\n\n")
    (batch,) = translator.batches(str(tmp_path / "source"), str(tmp_path / "target"), 8)
    assert translator.pairs(batch) == [([], "Zwei"), (translator.encode("two dogs"), "Hunde"), ([], "")]


@pytest.mark.slow
def test_sentences_of_multi30k_come_back_as_they_were() -> None:
    root = Path(os.environ.get("SUREFOOT_DATA", Path(__file__).parents[5] / "shared/data"))
    folder = root / "translation/multi30k"
    if not folder.is_dir():
        pytest.skip("SUREFOOT_DATA does not name a folder with translations")
    train, test = (
        gzip.decompress((folder / f"{name}.de.gz").read_bytes()).decode().splitlines()
        for name in ("train", "test_2016_flickr")
    )
    tokenizer = train_tokenizer(train, 4000)
    codec = PairCodec(lambda name: tokenizer.model, (4000, 4000))
    assert len(train) == 29_000
    assert [codec.decode(codec.encode(sentence)) for sentence in [*train, *test]] == [*train, *test]


def test_scores_are_those_of_the_sacrebleu_command(tmp_path: Path) -> None:
    """It is run as people run it, on files of lines."""
    files = [tmp_path / "references", tmp_path / "hypotheses"]
    for file, texts in zip(files, (GERMAN, HYPOTHESES), strict=True):
        file.write_text("".join(f"{text}\n" for text in texts))
    command = [sys.executable, "-m", "sacrebleu", str(files[0]), "-i", str(files[1])]
    for score in scores(HYPOTHESES, GERMAN):
        options = ["-m", score.name, "--format", "text", "--width", "2"]
        printed = subprocess.run([*command, *options], capture_output=True, text=True, check=True).stdout
        assert score.line == printed.strip()
        assert f"= {score.value:.2f}" in printed
        assert f"|{score.signature} =" in printed


@pytest.mark.parametrize(
    ("hypothesis", "reference", "value"),
    [
        ("der Hund läuft im Schnee", "der Hund läuft im Schnee", 100.0),
        # 5 of 5, 4 of 4, 3 of 3, 2 of 2 n-grams are right, but a sixth word is missing.
        ("der Hund läuft im Schnee", "der Hund läuft im Schnee umher", 100 * exp(1 - 6 / 5)),
        # 4 of 5 words are right, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours.
        (
            "der Hund rennt im Schnee",
            "ein Hund rennt im Schnee",
            100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25,
        ),
        ("", "der Hund", 0.0),
    ],
)
def test_bleu_by_hand(hypothesis: str, reference: str, value: float) -> None:
    assert scores([hypothesis], [reference])[0].value == pytest.approx(value)


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["ein Hund"], [])])
def test_scores_of_nothing_are_refused(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    with pytest.raises(ValueError, match=f"{len(hypotheses)} hypotheses, 0 references"):
        scores(hypotheses, references)


def test_tokenized_text_leaves_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    scores(["ein Hund ."] * 200, ["ein Hund ."] * 200)
    assert not caplog.records
