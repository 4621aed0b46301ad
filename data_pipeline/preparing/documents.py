"""The content of files becomes documents here: whole texts, pieces of long ones, or the rows of JSON lines."""

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.errors import DataError
from data_pipeline.parsing import reason
from data_pipeline.shown import shown

LONGEST_ROW = 64 << 20
"""Bytes of the longest row that is read."""

LONGEST_LINE = 1 << 16
"""Characters of a line of text; a longer one is cut at whitespace, or where there is none, between characters."""


_BLANK_LINES = re.compile(rb"(?:[ \t\r\v\f]*+\n)++")


class Run(NamedTuple):
    """It is a line of a text, or several blank ones."""

    name: str
    """For messages."""
    text: str
    number: int
    """That of the line, from 1."""
    lines: int
    """Lines that it stands for."""


class _Row(NamedTuple):
    name: str
    line: bytes
    number: int
    lines: int


class NotText(Exception):
    """A file does not hold what it was taken for; the message says what is wrong with it."""


def text_pieces(content: io.BufferedReader, longest: int, *, binary: bool = False) -> Iterator[str]:
    """It yields the text of a file in UTF-8, in pieces that end with a line and just exceed `longest` characters.

    Raises NotText, maybe after some pieces, for what is not UTF-8, and unless `binary` for NUL bytes.
    """
    # Not utf-8-sig: that codec takes a file that ends within a byte order mark for an empty one.
    text = io.TextIOWrapper(content, encoding="utf-8", newline="")
    piece: list[str] = []
    size = 0
    try:
        for line in _lines(text, min(LONGEST_LINE, longest)):
            if "\0" in line and not binary:
                raise NotText("holds NUL bytes, as no text does (binary data, or UTF-16)")
            piece.append(line)
            size += len(line)
            if size > longest:
                yield "".join(piece)
                piece, size = [], 0
    except UnicodeDecodeError as error:
        raise NotText(f"not UTF-8 ({error.reason})") from error
    if piece:
        yield "".join(piece)


def cut(text: str, longest: int) -> Iterator[str]:
    """It yields a text whole if there is any; where it is longer than `longest` characters, in pieces as `text_pieces`
    makes them."""
    if len(text) <= longest:
        yield from filter(None, [text])
    else:
        yield from text_pieces(_encoded(text), longest, binary=True)


def text_rows(content: BinaryIO, place: str) -> Iterator[tuple[str, str]]:
    """It yields the lines of a text in UTF-8 without their ends, each with a name for messages.

    A line ends at `\\n` alone, maybe after `\\r`, as it does in parallel files: at other ends that Unicode knows, one
    side would come out of step with the other.

    Raises DataError for a line that is too long, and for what is no text.
    """
    return ((row.name, _text(row)) for row in _rows(content, place))


def text_runs(content: io.BufferedReader, place: str) -> Iterator[Run]:
    """It yields the same, but of blank lines that follow each other the first for all of them, or for many: a small
    packed file can hold more than anybody waits for."""
    return (
        Run(row.name, _text(row), row.number, row.lines)
        for row in _rows(content, place, partial(_passed_over, content))
    )


def json_rows(content: io.BufferedReader, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """It yields the objects of JSON lines, each with a name for messages; numbers in them are not read.

    Raises DataError for a line that is too long, or no JSON object.
    """
    for row in _rows(content, place, partial(_passed_over, content)):
        if row.line.strip():
            yield row.name, _object(row.line, row.name)


def first_object(line: bytes) -> dict[str, Any] | None:
    """It returns the JSON object that a line is; None where it is none."""
    try:
        return _object(line, "")
    except DataError:
        return None


def _rows(content: BinaryIO, place: str, more: Callable[[], int] = lambda: 0) -> Iterator[_Row]:
    """It yields lines; `more` says how many more a blank one stands for."""
    number, shown_place = 1, shown(place)
    while line := content.readline(LONGEST_ROW + 1):
        name = f"{shown_place}, line {number}"
        if len(line) > LONGEST_ROW:
            raise DataError(f"{name}: longer than {LONGEST_ROW >> 20} MiB, the most that is read of a line")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        lines = 1 if line.strip() else 1 + more()
        yield _Row(name, line, number, lines)
        number += lines


def _passed_over(content: io.BufferedReader) -> int:
    """It passes over the blank lines that come next, as far as it can tell at once, and counts them."""
    count = 0
    while found := _BLANK_LINES.match(content.peek()):
        count += content.read(found.end()).count(b"\n")
    return count


def _text(row: _Row) -> str:
    """It returns a line without its end. Raises DataError where it is no text."""
    if b"\0" in row.line:
        raise DataError(f"{row.name}: holds NUL bytes, as no text does (binary data, or UTF-16)")
    try:
        return row.line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{row.name}: not UTF-8 ({error.reason})") from error


def _object(line: bytes, name: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode(), parse_int=_unread, parse_float=_unread, parse_constant=_unread)
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{name}: not JSON: {reason(error)}") from error
    if not isinstance(record, dict):
        raise DataError(f"{name}: not a JSON object")
    return record


def _unread(digits: str) -> float:
    """It stands for any number: a long one would take its time, or raise."""
    return 0.0


def _lines(text: io.TextIOWrapper, longest: int) -> Iterator[str]:
    """It yields lines with their ends, and of a line that is too long parts, cut at whitespace if there is any."""
    kept = text.readline(1).removeprefix("\ufeff")
    if kept in ("\r", "\n"):
        yield kept
        kept = ""
    while line := kept + text.readline(longest - len(kept)):
        kept = ""
        if len(line) >= longest and line[-1] not in "\r\n":
            line, kept = _at_whitespace(line)
        yield line


def _at_whitespace(line: str) -> tuple[str, str]:
    """It cuts a line behind its last whitespace; where there is none, nothing is left over."""
    word = "" if line[-1].isspace() else line.split()[-1]
    end = len(line) - len(word) or len(line)
    return line[:end], line[end:]


def _encoded(text: str) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(text.encode("utf-8-sig")))
