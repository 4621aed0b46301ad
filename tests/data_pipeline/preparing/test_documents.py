"""Content becomes documents without losing a character, and fails with errors of its own alone."""

import io
import json
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.preparing.compression import opened_content
from data_pipeline.preparing.documents import (
    NotText,
    cut,
    first_object,
    json_rows,
    text_pieces,
    text_rows,
    text_runs,
)

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
spaced = st.text(st.sampled_from(" \t\n\r\u3000\u0085\ufeffab\u4e2d\U0001f43e\0"), max_size=300)


def content(data: bytes) -> io.BufferedReader:
    return opened_content(Path("a.txt"), io.BytesIO(data))


@given(st.one_of(any_text, spaced), st.integers(1, 60))
def test_a_cut_loses_nothing_and_keeps_words(text: str, longest: int) -> None:
    pieces = list(cut(text, longest))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 2 * longest + 1 for piece in pieces)
    for piece, following in pairwise(pieces):
        within_a_word = not piece[-1].isspace() and not following[0].isspace()
        assert not within_a_word or len(piece.split()[-1]) >= longest or not set(piece) & {" ", "\t"}


@given(st.one_of(any_text, spaced), st.integers(1, 60))
def test_pieces_are_the_text(text: str, longest: int) -> None:
    pieces = list(text_pieces(content(text.encode("utf-8-sig")), longest, binary=True))
    assert "".join(pieces) == text


@given(st.binary(max_size=200), st.integers(1, 60))
def test_any_bytes_are_text_or_refused(data: bytes, longest: int) -> None:
    try:
        text = "".join(text_pieces(content(data), longest))
    except NotText:
        return
    assert text.encode() == data.removeprefix(b"\xef\xbb\xbf")


json_like = st.recursive(
    st.sampled_from([b"1", b"-1e999", b"NaN", b'"\\ud800"', b'"text"', b"tru", b"9" * 5000, b'"\xff"', b""]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]"),
        st.lists(inner, max_size=3).map(lambda items: b'{"text":' + b',"b":'.join(items) + b"}"),
        inner.map(lambda item: item * 3),
        inner.map(lambda item: b"\xef\xbb\xbf" + item + b"\r\n"),
    ),
    max_leaves=8,
)


@given(st.one_of(st.binary(max_size=200), json_like, st.lists(json_like).map(b"\n".join)))
def test_any_bytes_are_rows_or_refused(data: bytes) -> None:
    refusal, rows = "", []
    try:
        rows = list(json_rows(content(data), "a\x1b.jsonl"))
    except DataError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith("a\\x1b.jsonl, line ")
    assert refusal.isprintable()
    assert all(isinstance(row, dict) for _, row in rows)
    assert len(rows) <= data.count(b"\n") + 1
    first_object(data)


@given(st.binary(max_size=300), st.sampled_from([".gz", ".bz2", ".xz", ".zst"]), st.booleans())
def test_any_bytes_are_unpacked_or_refused(data: bytes, suffix: str, magic: bool) -> None:
    start = {".gz": b"\x1f\x8b\x08\0", ".bz2": b"BZh9", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}[
        suffix
    ]
    refusal = ""
    try:
        opened_content(Path(f"a{suffix}"), io.BytesIO(start + data if magic else data)).read()
    except DataError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(f"a{suffix}: ")


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_of_zstd_follow_each_other(frames: int) -> None:
    packed = b"".join(zstandard.compress(json.dumps(number).encode()) for number in range(frames))
    assert opened_content(Path("a.zst"), io.BytesIO(packed)).read() == bytes(range(48, 48 + frames))


LINES = st.sampled_from(
    [b"\n", b"\r\n", b" \n", b"\t", b"\r", b"one\n", b"two\r\n", b"\xef\xbb\xbf", b" " * 20]
)


@given(st.lists(st.tuples(LINES, st.integers(1, 9))), st.integers(1, 20))
def test_blank_lines_that_are_taken_together_are_all_there(
    parts: list[tuple[bytes, int]], buffer: int
) -> None:
    data = b"".join(part * times for part, times in parts)
    rows = list(text_rows(content(data), "a"))
    runs = list(text_runs(io.BufferedReader(io.BytesIO(data), buffer), "a"))
    lines = [(f"a, line {run.number + place}", run.text) for run in runs for place in range(run.lines)]
    assert [name for name, _ in lines] == [name for name, _ in rows]
    assert [text for _, text in lines if text.strip()] == [text for _, text in rows if text.strip()]
    assert all(run.name == f"a, line {run.number}" for run in runs)
    assert all(run.lines == 1 for run in runs if run.text.strip())


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \t\n", b"\n \r\n" + b" " * 40 + b"\n"])
def test_a_million_blank_lines_are_not_looked_at_one_by_one(blank: bytes) -> None:
    repeats = 1_000_000 // blank.count(b"\n")
    lines = repeats * blank.count(b"\n")
    data = b"{}\n" + blank * repeats + b'{"a": ""}\n'
    first, *runs, last = text_runs(content(data), "a")
    assert (first.text, last.text, last.number) == ("{}", '{"a": ""}', lines + 2)
    assert sum(run.lines for run in runs) == lines
    assert len(runs) < 4000
    assert [name for name, _ in json_rows(content(data), "a")] == ["a, line 1", f"a, line {lines + 2}"]


def test_a_row_that_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.preparing.documents.LONGEST_ROW", 1 << 20)
    rows = json_rows(content(b'{"a": 1}\n{"a": "' + b"x" * (1 << 20) + b'"}'), "a.jsonl")
    assert next(rows) == ("a.jsonl, line 1", {"a": 0.0})
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: longer than 1 MiB"):
        next(rows)
