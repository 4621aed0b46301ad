"""Compressed files are read as streams of bytes, however much is packed into them."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from data_pipeline.errors import DataError
from data_pipeline.shown import shown

BUFFER_BYTES = 1 << 17

STREAM_BYTES = 1 << 13
"""Compressed bytes of bzip2 and xz that are unpacked at once."""

ZSTD_BYTES = 1 << 10
"""Compressed bytes that are unpacked at once: a block of 4 bytes may hold 128 KiB, so these never hold above 32 MiB."""

LARGEST_EXPANSION = 250
"""Content of so many times the bytes that it is packed into is taken for an attack; logs reach a tenth of it."""

SMALL_CONTENT = 64 << 20
"""Content up to this size is read whatever it is packed into."""


def opened_content(path: Path, raw: BinaryIO) -> io.BufferedReader:
    """It returns the content of the open file `raw`, unpacked where the name of `path` says so; `raw` stays open.

    Reading raises DataError for a file that is damaged or cut, or holds too much for its size.
    """
    return io.BufferedReader(_Content(path, raw), BUFFER_BYTES)


def plain_name(path: Path) -> Path:
    """It returns the name of what is in a file: without the suffix of a compression, in small letters."""
    name = Path(path.name.lower())
    return name.with_suffix("") if name.suffix in _UNPACK else name


class _Content(io.RawIOBase):
    """It reads unpacked bytes in portions, and turns what unpackers raise into DataError."""

    def __init__(self, path: Path, raw: BinaryIO) -> None:
        self._path = path
        self._raw = raw
        self._size = 0
        unpack = _UNPACK.get(path.suffix.lower())
        self._is_packed = unpack is not None
        self._reader: Any = unpack(raw) if unpack else raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            size = int(self._reader.readinto(buffer))
            if self._is_packed and not self._raw.tell():
                raise EOFError("is empty")
        except MemoryError as error:
            raise DataError(f"{shown(self._path)}: unpacking asks for more memory than there is") from error
        except (EOFError, *_DAMAGE) as error:
            raise self._refusal(error) from error
        except OSError as error:
            if error.errno is None:  # bz2 says so of damage
                raise self._refusal(error) from error
            raise
        self._size += size
        if self._is_packed and self._size > max(SMALL_CONTENT, LARGEST_EXPANSION * self._raw.tell()):
            raise DataError(
                f"{shown(self._path)}: unpacks to more than {LARGEST_EXPANSION} times its size; "
                "if that is meant, unpack it and name the result"
            )
        return size

    def _refusal(self, error: Exception) -> DataError:
        if "too much memory" in str(error):
            why = "was packed with a window of more than 128 MiB (zstd --long); pack it again without"
        else:
            why = f"the compressed file is damaged or cut ({error})"
        return DataError(f"{shown(self._path)}: {why}")


class _StreamsFile(io.RawIOBase):
    """It reads streams of bzip2 or xz, one after another; the library's own readers take a damaged one for the end.

    Zeros behind a stream are padding, as in gzip: no stream begins so.
    """

    def __init__(self, raw: BinaryIO, new: Callable[[], Any]) -> None:
        self._raw = raw
        self._new = new
        self._stream = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = 0
        while not size:
            chunk = b""
            if self._stream.eof:
                if not (chunk := self._behind_stream()):
                    return 0
                self._stream = self._new()
            elif self._stream.needs_input and not (chunk := self._raw.read(STREAM_BYTES)):
                raise EOFError("ends within a stream")
            content = self._stream.decompress(chunk, len(buffer))
            size = len(content)
            buffer[:size] = content
        return size

    def _behind_stream(self) -> bytes:
        """It returns the next bytes that are no padding; none where the file ends."""
        chunk: bytes = self._stream.unused_data
        while not (rest := chunk.lstrip(b"\0")) and (chunk := self._raw.read(STREAM_BYTES)):
            pass
        return rest


class _ZstdFile(io.RawIOBase):
    """It reads Zstandard frames, one after another; the library's own reader takes a cut file for a complete one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._within_frame = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            if not (chunk := self._frame.unused_data or self._raw.read(ZSTD_BYTES)):
                if self._within_frame:
                    raise EOFError("ends within a frame")
                return 0
            self._ready = memoryview(self._decompress(chunk))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self, chunk: bytes) -> bytes:
        if self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        content = self._frame.decompress(chunk)
        self._within_frame = not self._frame.eof
        return content


_UNPACK: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": lambda raw: _StreamsFile(raw, bz2.BZ2Decompressor),
    ".xz": lambda raw: _StreamsFile(raw, lzma.LZMADecompressor),
    ".zst": _ZstdFile,
}
_DAMAGE = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)
