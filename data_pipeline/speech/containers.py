"""Containers of audio are told apart and looked through here.

libsndfile reads cut and damaged ones without a word, and knows some twenty more, whose parsers hardly anybody tries.
"""

import os
import zlib
from functools import lru_cache
from io import BufferedReader
from pathlib import Path

from data_pipeline.files import open_regular

HEADER = 27
"""Bytes of the header of a page of Ogg, before the sizes of its segments."""

LAST_PAGE = 4
"""The flag of the page that ends a stream."""

UNKNOWN_SIZE = 0x7FFF_0000
"""From here on the size of a RIFF is that of no file: those write it who write to a pipe."""

MOST_CHUNKS = 1000
"""Of a WAV that its audio is looked for in."""

MISCOUNTED = 8
"""Bytes that some writers count in that are not there, as those of the size itself."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the opposite order."""


def fault_of_container(path: Path, raw: BufferedReader) -> str | None:
    """It returns what is wrong with a file, which is open as `raw`: that it is no WAV, FLAC or Ogg, or that a WAV or an
    Ogg was cut or damaged. A FLAC is checked by its decoder, frame by frame. Raises OSError."""
    match raw.read(12):
        case b"":
            return "is an empty file"
        case magic if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
            return "is cut: it is shorter than its header says" if _is_cut(magic, raw) else None
        case magic if magic[:4] == b"OggS":
            state = os.fstat(raw.fileno())
            return _fault_of_ogg(path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
        case magic:
            return None if magic[:4] == b"fLaC" else "is no WAV, FLAC or Ogg"


def _is_cut(magic: bytes, raw: BufferedReader) -> bool:
    """It tells whether a WAV is shorter than the size of the whole says, or that of its audio: who writes to a pipe may
    know one of them."""
    size, place = os.fstat(raw.fileno()).st_size + MISCOUNTED, len(magic)
    if size < int.from_bytes(magic[4:8], "little") + 8 < UNKNOWN_SIZE:
        return True
    for _ in range(MOST_CHUNKS):
        raw.seek(place)
        header = raw.read(8)
        length = int.from_bytes(header[4:], "little")
        place += 8 + length
        if len(header) < 8 or header[:4] == b"data":
            return len(header) == 8 and size < place and length < UNKNOWN_SIZE
        place += length % 2  # chunks begin at even places
    return False


@lru_cache(64)  # many utterances may be parts of one recording
def _fault_of_ogg(path: Path, identity: tuple[int, ...]) -> str | None:
    with open_regular(path, follow=True) as raw:
        return _fault_of_pages(raw)


def _fault_of_pages(raw: BufferedReader) -> str | None:
    """It reads all pages, as RFC 3533 has them: each has a checksum, and the last one says that it is."""
    ended = False
    while header := raw.read(HEADER):
        sizes = raw.read(header[-1]) if len(header) == HEADER else b""
        body = raw.read(sum(sizes))
        if header[:4] != b"OggS" or len(header) < HEADER or len(sizes) < header[-1] or len(body) < sum(sizes):
            return "is damaged or cut: its pages are not whole"
        page = header[:22] + bytes(4) + header[26:] + sizes + body
        if _checksum(page) != int.from_bytes(header[22:26], "little"):
            return "is damaged: a page does not fit its checksum"
        ended = bool(header[5] & LAST_PAGE)
    return None if ended else "is cut: its last page is missing"


def _checksum(page: bytes) -> int:
    """It returns the CRC-32 of Ogg: zlib's, with the bits the other way round and nothing inverted."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{mirrored:032b}"[::-1], 2)
