"""Whatever comes from outside can be shown: no terminal is steered, no line is forged, no secret is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.shown import LONGEST, masked, shown, shown_lines

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain [bold] \\ 100 %", "plain [bold] \\ 100 %"),
        ("größe 数据 עברית 🙂", "größe 数据 עברית 🙂"),
        ("ideographic\u3000space", "ideographic\u3000space"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("one\r\ntwo\vthree\u2028four\x85five", "one\\r\\ntwo\\x0bthree\\u2028four\\x85five"),
        ("txt\u202egnp.exe\u2066", "txt\\u202egnp.exe\\u2066"),
        ("zero\u200bwidth\ufeff\u00ad\U000e0041", "zero\\u200bwidth\\ufeff\\xad\\U000e0041"),
        ("latin\udce9 \x00 \x9b31m \x7f", "latin\\udce9 \\x00 \\x9b31m \\x7f"),
        (b"bytes\n", "b'bytes\\n'"),
    ],
)
def test_one_line_that_steers_nothing(text: object, expected: str) -> None:
    assert shown(text) == expected


@given(ANY_TEXT)
def test_any_text_is_one_line_that_can_be_printed(text: str) -> None:
    line = shown(text)
    line.encode("utf-8")
    assert len(line.splitlines()) <= 1
    assert shown(line) == line or len(line) > LONGEST
    assert len(shown_lines(text).split("\n")) == len(text.split("\n"))
    assert shown_lines(text).replace("\t", "").replace("\n", "") == "".join(
        map(shown, text.replace("\t", "").replace("\n", ""))
    )


def test_a_long_text_is_cut_and_says_so() -> None:
    assert shown("a" * LONGEST) == "a" * LONGEST
    assert shown("a" * 5000) == "a" * LONGEST + "... (5000 characters)"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://data.example/a@b/c", "https://data.example/a@b/c"),
        ("http://host:8000/a@b", "http://host:8000/a@b"),
        ("https://me:secret@host/a", "https://***@host/a"),
        ("https://token@host", "https://***@host"),
        ("ftp://me:se/c?r#e@t@host/a", "ftp://***@host/a"),
        ("simplecache::https://me:secret@host/a", "simplecache::https://***@host/a"),
        ("https://me:12345@host", "https://***@host"),
        ("s3://me:/slash/first@bucket", "s3://***@bucket"),
        ("https://me:two words\tand\nmore@host/a b", "https://***@host/a b"),
        ("https://m e:secret@host/a", "https://***@host/a"),
        ("http://u:p q@h and http://u:p q@h", "http://***@h and http://***@h"),
        ("http://h:8000: refused by a@b", "http://h:8000: refused by a@b"),
        ("http://h: refused by a@b", "http://h: refused by a@b"),
        (
            "https://h/a?token=abc&part=1;sig=x%3D%3D#access_token=abc",
            "https://h/a?token=***&part=***;sig=***",
        ),
        ("https://h/a?AbCdEf", "https://h/a?***"),
        ("https://h/a?X-Amz-Signature=a=b&x", "https://h/a?X-Amz-Signature=***&x"),
        (
            "503 of URL('https://h/a?sig=x') after http://u:p@h/b, x=y",
            "503 of URL('https://h/a?sig=***') after http://***@h/b, x=y",
        ),
        ("names?like=this", "names?like=this"),
    ],
)
def test_no_secret_of_a_url_is_told(url: str, expected: str) -> None:
    assert masked(url) == expected


@given(ANY_TEXT)
def test_masking_takes_any_text(text: str) -> None:
    assert masked(masked(text)) == masked(text)
