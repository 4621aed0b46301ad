"""Raw pairs come from parallel files, tables or JSON lines; they are looked through, and read in the order of files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.preparing.compression import opened_content, plain_name
from data_pipeline.preparing.documents import Run, json_rows, text_runs
from data_pipeline.preparing.json_lines import JSON_LINES, told_json
from data_pipeline.preparing.source_files import SourceFile, SourceFiles, opened_source
from data_pipeline.shown import shown

TABLES = (".tsv",)
SHEETS = (".csv",)
"""Tables that are not read here."""


@dataclass(frozen=True)
class Pair:
    """It is a sentence with its translation, as they stand in a file."""

    source: str
    target: str
    consumed: int = 0
    """Bytes of files read since the previous pair, for progress."""
    count: int = 1
    """Pairs that it stands for, where both sides are blank."""


@dataclass(frozen=True)
class RawFiles:
    """It says where the pairs of a split are, as a user names the files."""

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    """The same number of files, each with as many lines as its source."""
    pairs: tuple[str, ...] = ()
    """Files that hold both sides."""

    def __bool__(self) -> bool:
        return bool(self.source or self.target or self.pairs)


class ParallelCorpus:
    """It yields the pairs of files, in the order in which they are named.

    Raises DataError for a file that is missing or no file, and while reading: for a side that is a table or JSON, sides
    of different numbers of lines, what is no text in UTF-8, a row without both sides, and a file that has changed.
    """

    def __init__(self, raw: RawFiles, fields: tuple[str, str] = ("source", "target")) -> None:
        self._fields = fields
        self.found = SourceFiles()
        for name in (*raw.source, *raw.target, *raw.pairs):
            self.found.add(name)
        self._parallel = [
            (_named(one), _named(other)) for one, other in zip(raw.source, raw.target, strict=True)
        ]
        self._rows = [_named(name) for name in raw.pairs]

    @property
    def files(self) -> tuple[Path, ...]:
        """They are the files in their order, which decides what comes of them."""
        return tuple(file.path for file in (*(file for two in self._parallel for file in two), *self._rows))

    @property
    def bytes(self) -> int:
        """It is the size of all files."""
        return sum(file.size for two in self._parallel for file in two) + sum(
            file.size for file in self._rows
        )

    def pairs(self) -> Iterator[Pair]:
        """It reads everything once."""
        for source, target in self._parallel:
            yield from _in_step(source, target)
        for file in self._rows:
            yield from self._of_rows(file)

    def _of_rows(self, file: SourceFile) -> Iterator[Pair]:
        suffix = plain_name(file.path).suffix
        if suffix not in (*TABLES, *JSON_LINES):
            raise DataError(
                f"{shown(file.path)}: is neither a table ({', '.join(TABLES)}) nor JSON lines "
                f"({', '.join(JSON_LINES)}) by its name; name plain text with --source and --target"
            )
        with opened_source(file) as raw:
            content, consumed = opened_content(file.path, raw), 0
            rows = (
                ((_columns(run.text, run.name), run.lines) for run in text_runs(content, str(file.path)))
                if suffix in TABLES
                else (
                    (self._of_record(record, name), 1) for name, record in json_rows(content, str(file.path))
                )
            )
            for (source, target), count in rows:
                yield Pair(source, target, raw.tell() - consumed, count)
                consumed = raw.tell()

    def _of_record(self, record: Mapping[str, Any], place: str) -> Sequence[str]:
        for field in self._fields:
            if field not in record:
                names = ", ".join(map(shown, record))
                raise DataError(f"{place}: no field {shown(field)!r}, only {names}; choose with --fields")
            if not isinstance(record[field], str):
                raise DataError(f"{place}: field {shown(field)!r} is no string")
            if not _is_text(record[field]):
                raise DataError(f"{place}: field {shown(field)!r} has half a surrogate pair")
        return [record[field] for field in self._fields]


def _named(name: str) -> SourceFile:
    """It returns the file of a name. Raises DataError where that is no single file."""
    found = SourceFiles()
    found.add(name)
    if found.folders or len(found.files) != 1 or not found.files[0].named:
        raise DataError(
            f"{shown(name)}: is no file; name the files one by one, in the order of the other side"
        )
    return found.files[0]


def _in_step(source: SourceFile, target: SourceFile) -> Iterator[Pair]:
    """It yields the lines of two files together."""
    with opened_source(source) as one, opened_source(target) as other:
        _check_side(source.path, one)
        _check_side(target.path, other)
        sides = [
            _Side(text_runs(opened_content(file.path, raw), str(file.path)))
            for file, raw in ((source, one), (target, other))
        ]
        consumed = 0
        while all([side.has_more() for side in sides]):
            count = min(side.left for side in sides)
            texts = [side.take(count) for side in sides]
            yield Pair(texts[0], texts[1], one.tell() + other.tell() - consumed, count)
            consumed = one.tell() + other.tell()
        counts = [side.count_all() for side in sides]
    if counts[0] != counts[1]:
        raise DataError(
            f"{shown(source.path)} has {counts[0]:,} lines, but {shown(target.path)} has {counts[1]:,}; line by line "
            "they must be translations of each other"
        )


class _Side:
    """It is one side of two, whose lines are taken in step, blank ones several at a time."""

    def __init__(self, runs: Iterator[Run]) -> None:
        self._runs = runs
        self._text = ""
        self._taken = 0
        self.left = 0
        """Lines of the same text that come next."""

    def has_more(self) -> bool:
        """It reads on where that is needed, and tells whether there is any line."""
        if not self.left and (run := next(self._runs, None)):
            self._text, self.left = run.text, run.lines
        return self.left > 0

    def take(self, count: int) -> str:
        """It returns the text of the next `count` lines."""
        self.left -= count
        self._taken += count
        return self._text

    def count_all(self) -> int:
        """It reads to the end, and counts all lines."""
        while self.has_more():
            self.take(self.left)
        return self._taken


def _check_side(path: Path, raw: BufferedReader) -> None:
    """It raises DataError for what holds more than a sentence a line: a model would learn to write tabs, or JSON."""
    is_table = plain_name(path).suffix in (*TABLES, *SHEETS)
    if what := "a table by its name" if is_table else told_json(path, raw):
        raise DataError(
            f"{shown(path)}: is {what}, and a side of a translation has a sentence a line, as it is; `surefoot prepare "
            "translation` reads both sides from one file with --pairs (.tsv with two columns, .jsonl with --fields)"
        )


def _columns(line: str, place: str) -> Sequence[str]:
    """It returns both sides of a row; of a blank line, as parallel files have them too, both are empty."""
    columns = line.split("\t") if line.strip() else ("", "")
    if len(columns) != 2:
        raise DataError(
            f"{place}: has {len(columns) - 1} tabs; a row is a source, one tab and its target, nothing else"
        )
    return columns


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
