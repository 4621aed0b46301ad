"""Text that comes id by id is the text of all ids, and never a piece of a character."""

from itertools import accumulate, chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.text.streaming import REPLACEMENT, StreamedText
from data_pipeline.text.tokenizer import Tokenizer, train_tokenizer

TOKENIZER = train_tokenizer(["def f(x):\n    return x + 1  # hello world\n", "éa日 naïve 🐾 \n"] * 50, 330)
SPELLED = [TOKENIZER.encode(char)[0] for char in "\x00\x7f"]
BYTES = range(SPELLED[0], SPELLED[0] + 256)
"""Ids of all bytes, in order."""

bytes_of_text = st.text(max_size=6).map(lambda text: [BYTES[byte] for byte in text.encode()])
any_bytes = st.binary(max_size=6).map(lambda raw: [BYTES[byte] for byte in raw])
any_ids = st.lists(st.integers(0, TOKENIZER.vocabulary_size - 1), max_size=6)
pieces = st.lists(bytes_of_text | any_bytes | any_ids, max_size=8).map(lambda parts: list(chain(*parts)))


def streamed(ids: list[int]) -> list[str]:
    stream = StreamedText(TOKENIZER)
    return [*(stream.add(token) for token in ids), stream.end()]


def test_bytes_are_known() -> None:
    assert [TOKENIZER.byte(token) for token in BYTES] == list(range(256))
    others = set(range(TOKENIZER.vocabulary_size)) - set(BYTES)
    assert all(TOKENIZER.byte(token) is None for token in others)
    for token in (-1, TOKENIZER.vocabulary_size):
        with pytest.raises(DataError):
            TOKENIZER.byte(token)


@given(pieces)
def test_all_together_is_what_is_decoded(ids: list[int]) -> None:
    parts = streamed(ids)
    assert "".join(parts) == TOKENIZER.decode(ids)
    "".join(parts).encode()


@given(st.text(max_size=20))
def test_text_comes_back_in_whole_characters(text: str) -> None:
    """Whatever spells it: pieces, or bytes alone."""
    for ids in (TOKENIZER.encode(text), [BYTES[byte] for byte in text.encode()]):
        parts = streamed(ids)
        assert "".join(parts) == text
        assert all(text.startswith(so_far) for so_far in accumulate(parts))
        assert parts[-1] == "", "nothing is held back longer than needed"


@given(st.characters(exclude_categories=["Cs"]), any_ids)
def test_a_character_comes_with_its_last_byte(char: str, after: list[int]) -> None:
    stream = StreamedText(TOKENIZER)
    *first, last = (BYTES[byte] for byte in char.encode())
    assert [stream.add(token) for token in first] == [""] * len(first)
    assert stream.add(last) == char


def test_what_spells_no_character() -> None:
    truncated = [BYTES[byte] for byte in "日".encode()[:2]]
    assert streamed(truncated) == ["", "", REPLACEMENT * 2]
    assert streamed([*truncated, TOKENIZER.end_of_text, BYTES[ord("a")]]) == [
        "",
        "",
        REPLACEMENT * 2,
        "a",
        "",
    ]
    assert Tokenizer(TOKENIZER.model).decode(truncated) == REPLACEMENT * 2
