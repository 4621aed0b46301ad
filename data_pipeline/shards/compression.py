"""Compressed text files are read as streams of bytes."""

import gzip
import io
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

CHUNK_BYTES = 1 << 17


def decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    """It returns the content of the open file `raw`, decompressed where the name of `path` says so.

    A file that is cut raises EOFError when it is read, a damaged one BadGzipFile, zlib.error or ZstdError.
    """
    match path.suffix:
        case ".gz":
            return cast(BinaryIO, gzip.open(raw, "rb"))
        case ".zst":
            return io.BufferedReader(_ZstdFile(raw))
        case _:
            return raw


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
            if not (chunk := self._frame.unused_data or self._raw.read(CHUNK_BYTES)):
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
