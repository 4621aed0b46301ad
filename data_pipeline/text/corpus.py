"""Raw text comes from sources as a user names them; they are found as files and read as documents."""

import glob
import gzip
import io
import json
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from data_pipeline.errors import DataError
from data_pipeline.shards.compression import decompressed
from data_pipeline.shards.storage import data_errors

PYTHON_STDLIB = "python-stdlib"
"""Source name for the Python sources of the running interpreter's standard library."""

STDLIB_EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

LONG_FILE = 1 << 19
"""A plain text file of more bytes is a series of documents, cut at line ends into about `PIECES` pieces."""

PIECES = 128
LONGEST_PIECE = 1 << 20


@dataclass(frozen=True)
class Document:
    """It is one text of the corpus."""

    text: str
    consumed: int
    """Bytes of source files read since the previous document, for progress."""


class Corpus:
    """It yields the documents of some sources, in an order that depends on names and contents alone.

    A plain text file is one document (a long one several), a JSONL file has one a line in `field`.
    Files that are not UTF-8 and were found in a folder or by a pattern, and texts with half a surrogate
    pair, are left out and listed in `skipped`. Raises DataError when a source has no files, and while
    reading: for a file that vanished or is cut, a JSONL line that is no object or lacks the field, and a
    file that the user named and that is not UTF-8.
    """

    def __init__(self, sources: Sequence[str], field: str) -> None:
        self.files = _find(sources)
        self.bytes = sum(path.stat().st_size for path in self.files)
        self.skipped: list[str] = []
        self._named = {Path(source) for source in sources}
        self._field = field

    def documents(self) -> Iterator[Document]:
        """It reads everything once."""
        self.skipped.clear()
        for path in self.files:
            with data_errors(path), path.open("rb") as raw:
                consumed = 0
                for text in self._texts(path, raw):
                    if text:
                        yield Document(text, raw.tell() - consumed)
                        consumed = raw.tell()

    def _texts(self, path: Path, raw: BinaryIO) -> Iterator[str]:
        suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
        try:
            with decompressed(path, raw) as file:
                if suffixes[-1:] == [".jsonl"]:
                    yield from self._jsonl_texts(path, file)
                else:
                    yield from _plain_texts(file, path.stat().st_size)
        except UnicodeDecodeError as error:
            if path in self._named:
                raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error
            self.skipped.append(f"{path}: not UTF-8")
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"{path}: the compressed file is damaged or cut ({error})") from error

    def _jsonl_texts(self, path: Path, file: BinaryIO) -> Iterator[str]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            text = self._field_of(line, f"{path}, line {number}")
            try:
                text.encode()
            except UnicodeEncodeError:
                self.skipped.append(f"{path}, line {number}: half a surrogate pair")
            else:
                yield text

    def _field_of(self, line: bytes, place: str) -> str:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: not a JSON object")
        if self._field not in record:
            raise DataError(
                f"{place}: no field {self._field!r}, only {', '.join(record)}; choose with --field"
            )
        if not isinstance(record[self._field], str):
            raise DataError(f"{place}: field {self._field!r} is no string")
        return str(record[self._field])


def _find(sources: Sequence[str]) -> tuple[Path, ...]:
    """It returns the files of all sources, each once. Raises DataError for a source without any."""
    files: dict[Path, None] = {}
    for source in sources:
        found = list(_files_of(source))
        if not found:
            raise DataError(f"{source}: no such file, and no files in such a folder or pattern")
        files.update(dict.fromkeys(found))
    return tuple(files)


def _files_of(source: str) -> Iterable[Path]:
    if source == PYTHON_STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return [
            path
            for path in _walk(root, root.rglob("*.py"))
            if STDLIB_EXCLUDED.isdisjoint(path.relative_to(root).parts)
        ]
    path = Path(source)
    if path.is_dir():
        return _walk(path, path.rglob("*"))
    if path.is_file():
        return [path]
    return sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())


def _walk(root: Path, paths: Iterable[Path]) -> list[Path]:
    """It returns the files below `root`, without hidden ones, sorted."""
    visible = (
        path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    return sorted(path for path in visible if path.is_file())


def _plain_texts(file: BinaryIO, size: int) -> Iterator[str]:
    """It yields the whole text, or of a long one pieces that end with a line."""
    piece = min(max(size // PIECES, 1), LONGEST_PIECE) if size > LONG_FILE else LONG_FILE
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    while lines := text.readlines(piece):
        yield "".join(lines)
