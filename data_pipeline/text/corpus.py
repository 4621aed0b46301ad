"""Raw text comes from sources as a user names them; they are found as files, looked through, and read as documents."""

import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import DataError
from data_pipeline.preparing.compression import opened_content
from data_pipeline.preparing.documents import NotText, cut, json_rows, text_pieces
from data_pipeline.preparing.source_files import LeftOut, Parts, SourceFile, SourceFiles, opened_source
from data_pipeline.shown import shown
from data_pipeline.text.formats import Format, format_of

PYTHON_STDLIB = "python-stdlib"
"""Source name for the Python sources of the running interpreter's standard library."""

STDLIB_EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

LONG_FILE = 1 << 19
"""A plain text file of more bytes is a series of documents, cut at line ends into about `PIECES` pieces."""

PIECES = 128
LONGEST_PIECE = 1 << 20
"""Characters of the longest document, about."""

SHORTEST_PIECE = 256
"""Characters that documents are cut to at least, where there are too few of them."""


@dataclass(frozen=True)
class Document:
    """It is one text of the corpus."""

    text: str
    consumed: int
    """Bytes of source files read since the previous document, for progress."""
    part: int = 0
    """Its number among the pieces of a text that was cut."""


@dataclass(frozen=True)
class _Readable:
    """It is a file that was looked through from its beginning to its end, and found to be text."""

    file: SourceFile
    format: Format


class Corpus:
    """It yields the documents of some sources, in an order that depends on names and contents alone.

    A plain text file is one document (a long one several), JSON lines have one a line in `field`. Which files are read
    is decided by `survey`, before any document is handed out: a file that the user did not name himself, and that turns
    out not to be text, is left out as a whole.

    Raises DataError when a source has no files, and while reading: for a file that has changed or is cut, a JSON line
    that is no object or lacks the field, and a file that the user named and that is not text.
    """

    def __init__(
        self, sources: Sequence[str], field: str, form: Literal["auto", "text", "jsonl"] = "auto"
    ) -> None:
        self.found = _find(sources)
        self.bytes = sum(file.size for file in self.found.files)
        self.longest = LONGEST_PIECE
        """Characters above which documents are cut; the survey is to be made anew where that changes."""
        self._field = field
        self._form = form
        self._readable: list[_Readable] | None = None
        self._left_out: list[LeftOut] = []
        self._counts: Counter[str] = Counter()

    @property
    def files(self) -> tuple[Path, ...]:
        """They are the files that were found."""
        return tuple(file.path for file in self.found.files)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """It is what is not read: what is no file, and, after the survey, what is no text."""
        return (*self.found.left_out, *self._left_out)

    @property
    def summary(self) -> dict[str, Any]:
        """It tells after the survey what is read, cut, empty, left out and named twice."""
        readable = self._readable or []
        return {
            "files": len(readable),
            "bytes": sum(one.file.size for one in readable),
            "documents": self._counts["documents"],
            "cut": self._counts["cut"],
            "empty": self._counts["empty"],
            "duplicates": len(self.found.duplicates),
            "left_out": dict(Counter(entry.reason for entry in self.left_out)),
        }

    def survey(
        self,
        measure: Callable[[str], Mapping[str, int]] = lambda text: {},
        advance: Callable[[int], None] = lambda done: None,
    ) -> Counter[str]:
        """It reads everything, decides what is left out, and returns the sums of what `measure` says of documents.

        `advance` is told of the bytes that were read.
        """
        self._readable, self._left_out, self._counts = [], [], Counter()
        for file in self.found.files:
            counts: Counter[str] = Counter()
            rows: list[LeftOut] = []
            try:
                one = _Readable(file, self._format_of(file))
                for document in self._read(one, rows, counts):
                    counts.update({"documents": 1, "cut": document.part == 1, **measure(document.text)})
                    advance(document.consumed)
            except NotText as error:
                if file.named:
                    raise DataError(f"{shown(file.path)}: {error}") from error
                self._left_out.append(LeftOut(str(file.path), str(error)))
            else:
                self._readable.append(one)
                self._left_out += rows
                self._counts.update(counts)
        return self._counts

    def documents(self) -> Iterator[Document]:
        """It reads once what the survey has not left out; the survey is made first where there was none."""
        if self._readable is None:
            self.survey()
        for one in self._readable or ():
            yield from self._read(one, [], Counter())

    def _format_of(self, file: SourceFile) -> Format:
        if self._form != "auto":
            return self._form
        with opened_source(file) as raw:
            return format_of(file.path, raw, self._field)

    def _read(self, one: _Readable, left_out: list[LeftOut], counts: Counter[str]) -> Iterator[Document]:
        """It adds rows that are no text to `left_out`, and those without any to the `counts`."""
        with opened_source(one.file) as raw:
            consumed = 0
            content = opened_content(one.file.path, raw)
            texts = (
                self._rows(one, content, left_out, counts)
                if one.format == "jsonl"
                else self._pieces(one, content)
            )
            for text, part in texts:
                yield Document(text, raw.tell() - consumed, part)
                consumed = raw.tell()

    def _pieces(self, one: _Readable, content: BufferedReader) -> Iterator[tuple[str, int]]:
        size = one.file.size
        piece = min(max(size // PIECES, 1), LONGEST_PIECE) if size > LONG_FILE else LONG_FILE
        pieces = text_pieces(content, min(piece, self.longest), binary=self._form == "text")
        yield from zip(pieces, count())

    def _rows(
        self, one: _Readable, content: BufferedReader, left_out: list[LeftOut], counts: Counter[str]
    ) -> Iterator[tuple[str, int]]:
        for place, record in json_rows(content, str(one.file.path)):
            text = self._text_of(record, place)
            counts["empty"] += not text
            try:
                text.encode()
            except UnicodeEncodeError:
                left_out.append(LeftOut(place, "half a surrogate pair"))
            else:
                yield from zip(cut(text, self.longest), count())

    def _text_of(self, record: Mapping[str, Any], place: str) -> str:
        if self._field not in record:
            names = ", ".join(map(shown, record))
            raise DataError(f"{place}: no field {shown(self._field)!r}, only {names}; choose with --field")
        if not isinstance(record[self._field], str):
            raise DataError(f"{place}: field {shown(self._field)!r} is no string")
        return str(record[self._field])


def _find(sources: Sequence[str]) -> SourceFiles:
    """It returns the files of all sources. Raises DataError for a source without any."""
    found = SourceFiles()
    for source in sources:
        if source == PYTHON_STDLIB:
            found.add_folder(Path(sysconfig.get_paths()["stdlib"]), _is_stdlib)
        else:
            found.add(source)
    return found


def _is_stdlib(parts: Parts, is_folder: bool) -> bool:
    return STDLIB_EXCLUDED.isdisjoint(parts) and (is_folder or parts[-1].endswith(".py"))
