"""The tokenizer gives back exactly what it was given."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.text.tokenizer import END_OF_TEXT, PROBE, SPACE_MARK, Tokenizer, train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\r\n", "the cat sat on the mat  twice"] * 20
SIZE = 310


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, SIZE)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
tricky = st.text(
    st.sampled_from([" ", "\t", "\n", "\0", SPACE_MARK, "\ufeff", "\u2047", "a", "\u0301", "<", "0"])
)


@given(st.one_of(text, tricky, st.just(END_OF_TEXT), st.just("<unk><0x41>")))
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocabulary_size for token in ids)


@given(text)
def test_no_text_holds_the_end_of_text_id(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.end_of_text not in tokenizer.encode(text + END_OF_TEXT)


def test_the_same_texts_give_the_same_bytes(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(TEXTS, SIZE).digest == tokenizer.digest
    assert tokenizer.vocabulary_size == SIZE


def test_a_copy_for_a_worker_is_the_same(tokenizer: Tokenizer) -> None:
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize(("size", "word"), [(100_000, "at most"), (100, "at least")])
def test_an_impossible_size_names_one_that_works(size: int, word: str) -> None:
    with pytest.raises(
        DataError, match=rf"{size} is too (large|small) for the text: {word} \d+ works"
    ) as raised:
        train_tokenizer(TEXTS, size)
    works = int(str(raised.value).split()[-2])
    assert train_tokenizer(TEXTS, works).vocabulary_size == works
    beyond = works + 1 if word == "at most" else works - 1
    with pytest.raises(DataError):
        train_tokenizer(TEXTS, beyond)


HARD_TEXTS = {
    "names": "\n".join(f"{'aeiou'[n % 5]}{'bcdfg'[n * n % 5]}a{n % 7}" for n in range(2000)),
    "Chinese": "".join(chr(0x4E00 + n * n % 300) for n in range(5000)),
    "one space in much": "".join(chr(0x4E00 + n * n % 300) for n in range(9000)) + " ",
    "many characters": "".join(map(chr, range(0x100, 0x2F00))),
    "DNA": "".join("ACGT"[n * n * 7 % 11 % 4] for n in range(5000)),
    "one character": "a",
    "digits": "0123456789" * 50,
    "emoji": "\U0001f43e\U0001f600" * 50,
    "line ends": "\n\r\n" * 50,
    "tabs": "\t" * 50,
    "control characters": "\x01\x1b\x7f\x0b\x85" * 20,
    "NUL": "\0" * 20,
    "the mark of a space": SPACE_MARK * 20,
    "control pieces": END_OF_TEXT + "<unk><0x41>",
}


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_any_text_can_be_learnt_from_and_any_other_text_survives(text: str) -> None:
    with pytest.raises(DataError, match=r"at most \d+ works") as raised:
        train_tokenizer([text], 100_000)
    largest = int(str(raised.value).split()[-2])
    learnt = train_tokenizer([text], largest)
    for other in (text, PROBE, f" a  {text} \t\n\0{SPACE_MARK} "):
        assert learnt.decode(learnt.encode(other)) == other


def test_what_fails_while_texts_are_read_is_told_as_what_it_is() -> None:
    class Broken(Exception):
        pass

    def texts() -> Iterator[str]:
        yield TEXTS[0]
        raise Broken

    with pytest.raises(Broken):
        train_tokenizer(texts(), SIZE)


def test_a_size_beyond_all_counting_names_one_that_works() -> None:
    with pytest.raises(DataError, match=rf"{10**30} is too large for the text: at most \d+ works"):
        train_tokenizer(TEXTS, 10**30)


def test_no_text_is_said_so() -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer([], 300)


def test_a_lossy_model_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=33,
        control_symbols=[END_OF_TEXT],
        minloglevel=2,
    )
    (tmp_path / "lossy.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match=r"lossy\.model: loses characters"):
        Tokenizer.load(tmp_path / "lossy.model")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("hello")
    with pytest.raises(DataError, match=r"some\.txt: not a sentencepiece model"):
        Tokenizer.load(tmp_path / "some.txt")
    with pytest.raises(DataError, match=r"none\.model: "):
        Tokenizer.load(tmp_path / "none.model")
