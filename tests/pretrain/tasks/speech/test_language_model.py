"""A bigram model that is written by hand, read by kenlm, and what is said where that cannot be."""

import gzip
import os
from math import log
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.speech.units import CharacterUnits
from pretrain.errors import ConfigurationError
from pretrain.runtime.libraries import Library
from pretrain.tasks.speech import language_model
from pretrain.tasks.speech.decoding import decode
from pretrain.tasks.speech.fusion import Fusion
from pretrain.tasks.speech.language_model import KENLM, NGrams

ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-0.7\t</s>
-0.5\tto\t-0.2
-0.6\ttwo\t-0.1

\\2-grams:
-0.2\t<s> two
-0.9\t<s> to
-0.1\ttwo </s>

\\end\\
"""
needs_kenlm = pytest.mark.skipif(not KENLM.usable, reason="kenlm is not installed")


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "words.arpa"
    path.write_text(ARPA)
    return path


@needs_kenlm
def test_words_have_the_probabilities_of_the_file(arpa: Path) -> None:
    model = NGrams(arpa)
    state, first = model.word(model.begin(), "two")
    assert first == pytest.approx(log(10**-0.2))
    assert model.end(state) == pytest.approx(log(10**-0.1))
    # Backing off: what follows "two" without a bigram, and a word that is not known.
    assert model.word(state, "to")[1] == pytest.approx(log(10 ** -(0.1 + 0.5)))
    state, unknown = model.word(model.begin(), "three")
    assert unknown == pytest.approx(log(10 ** -(0.3 + 1.0)))
    assert model.end(state) == pytest.approx(log(10**-0.7))


@needs_kenlm
def test_it_decides_between_words_that_sound_alike(arpa: Path) -> None:
    units = CharacterUnits("tow")
    log_probs = np.log(np.full((3, 4), 1e-6))
    log_probs[[0, 1, 1, 2], [1, 3, 0, 2]] = log(0.4), log(0.45), log(0.55), log(0.5)
    assert units.decode(decode(log_probs, 8).units) == "to"
    fusion = Fusion(NGrams(arpa), 1.0, 0.0, units.count, units.decode)
    assert units.decode(decode(log_probs, 8, fusion).units) == "two"


@needs_kenlm
def test_compressed_file_is_the_same(arpa: Path, tmp_path: Path) -> None:
    (tmp_path / "words.arpa.gz").write_bytes(gzip.compress(ARPA.encode()))
    plain, packed = NGrams(arpa), NGrams(tmp_path / "words.arpa.gz")
    assert plain.word(plain.begin(), "two")[1] == packed.word(packed.begin(), "two")[1]


@needs_kenlm
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "End of file"),
        (b"no model\n", 'first non-empty line was "no model"'),
        (ARPA[:90].encode(), "words"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(60), "Try rebuilding"),
    ],
)
def test_what_is_no_model_is_refused(arpa: Path, content: bytes, told: str) -> None:
    arpa.write_bytes(content)
    with pytest.raises(DataError, match=r"language model .*words\.arpa: ") as refused:
        NGrams(arpa)
    assert told in str(refused.value)
    assert ".cc:" not in str(refused.value)


@needs_kenlm
def test_pipes_and_nothing_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none", "."):
        with pytest.raises(DataError, match="language model"):
            NGrams(tmp_path / name)


def test_without_kenlm_it_says_what_to_do(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "KENLM", Library(False, "not installed"))
    with pytest.raises(
        ConfigurationError, match=r"words\.arpa: kenlm, .* is not installed; pip install kenlm"
    ):
        NGrams(arpa)
