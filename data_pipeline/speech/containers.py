"""Containers of audio are told apart and looked through here.

libsndfile reads cut and damaged ones without a word, and knows some twenty more, whose parsers hardly anybody tries.
"""

import errno
import os
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from io import BufferedReader
from pathlib import Path

from data_pipeline.files import identity_of, open_regular

HEADER = 27
"""Bytes of the header of a page of Ogg, before the sizes of its segments."""

FIRST_PAGE, LAST_PAGE = 2, 4
"""The flags of the pages that begin and end a stream."""

SEVERAL = "holds several streams, one after another or at once, of which one alone would be read; write each to a file"

FLAC_BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
"""What a FLAC begins with, and the header of the block that all have first, of 34 bytes."""

SCANNED_BYTES = 1 << 20
"""They are looked through at once."""

TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
"""What programs hang behind audio, whatever its container."""

LEAST_REST = 1024
"""Bytes behind the audio of a WAV, no chunk and no tag, that are taken for audio that its header leaves out."""

CUT = "is cut: it is shorter than its header says"
LONGER = "is damaged: it holds more audio than its header says"

UNKNOWN_SIZE = 0x7FFF_0000
"""From here on the size of a RIFF is that of no file: those write it who write to a pipe."""

MOST_CHUNKS = 1000
"""Of a WAV that its audio is looked for in."""

MISCOUNTED = 8
"""Bytes that some writers count in that are not there, as those of the size itself."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the opposite order."""


def fault_of_container(path: Path, raw: BufferedReader) -> str | None:
    """It returns what is wrong with a file, which is open as `raw`: that it is no WAV, FLAC or Ogg, that a WAV or an
    Ogg was cut or damaged, or that there is more in it than would be read. A FLAC is checked for damage by its decoder,
    frame by frame. Raises OSError."""
    match raw.read(12):
        case b"":
            return "is an empty file"
        case magic if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
            return _fault_of_wav(magic, raw)
        case magic if magic[:4] in (b"OggS", b"fLaC"):
            return _fault_of_whole(path, identity_of(os.fstat(raw.fileno())), magic[:4])
        case _:
            return "is no WAV, FLAC or Ogg"


def _fault_of_wav(magic: bytes, raw: BufferedReader) -> str | None:
    """It holds against a WAV the size of the whole in its header, and that of its audio: who writes to a pipe may know
    one of them."""
    size = os.fstat(raw.fileno()).st_size
    if size + MISCOUNTED < int.from_bytes(magic[4:8], "little") + 8 < UNKNOWN_SIZE:
        return CUT
    for name, length, place in _chunks(raw, len(magic)):
        if name == b"data":
            if length >= UNKNOWN_SIZE:
                return None
            if size + MISCOUNTED < place + length:
                return CUT
            end = place + length  # not all writers have the next chunk begin at an even place
            hides = all(_hides_audio(raw, begin, size) for begin in (end + end % 2, end))
            return LONGER if length and hides else None
    return None


def _chunks(raw: BufferedReader, place: int) -> Iterator[tuple[bytes, int, int]]:
    """It yields names of the chunks from a place on, how long they are, and where what they hold begins."""
    for _ in range(MOST_CHUNKS):
        raw.seek(place)
        if len(header := raw.read(8)) < 8:
            return
        length = int.from_bytes(header[4:], "little")
        yield header[:4], length, place + 8
        place += 8 + length + length % 2  # chunks begin at even places


def _hides_audio(raw: BufferedReader, place: int, size: int) -> bool:
    """It tells whether what stands behind the audio of a WAV is neither chunks nor a tag, nor padding with zeros."""
    end = place
    for name, length, begin in _chunks(raw, place):
        if not (name.isascii() and name.decode().isprintable()) or begin + length > size + MISCOUNTED:
            break
        end = begin + length + length % 2
    if size - end < LEAST_REST:
        return False
    raw.seek(end)
    if raw.peek()[: len(max(TAGS, key=len))].startswith(TAGS):
        return False
    return any(block.strip(b"\0") for block in iter(lambda: raw.read(SCANNED_BYTES), b""))


@lru_cache(64)  # many utterances may be parts of one recording
def _fault_of_whole(path: Path, identity: tuple[int, ...], magic: bytes) -> str | None:
    with open_regular(path, follow=True) as raw:
        if identity_of(os.fstat(raw.fileno())) != identity:
            raise OSError(errno.ESTALE, "has changed while it was read", str(path))
        return _fault_of_pages(raw) if magic == b"OggS" else _fault_of_flac(raw)


def _fault_of_flac(raw: BufferedReader) -> str | None:
    """It looks for a second stream: decoders end with the first one."""
    before = b""
    raw.seek(1)
    while block := raw.read(SCANNED_BYTES):
        if FLAC_BEGINNING.search(before + block):
            return SEVERAL
        before = block[-7:]
    return None


def _fault_of_pages(raw: BufferedReader) -> str | None:
    """It reads all pages, as RFC 3533 has them: each has a checksum and the number behind that of the one before, one
    alone begins the stream that all are of, and the last one says that it is."""
    ended, stream, number = False, b"", 0
    while header := raw.read(HEADER):
        sizes = raw.read(header[-1]) if len(header) == HEADER else b""
        body = raw.read(sum(sizes))
        if header[:4] != b"OggS" or len(header) < HEADER or len(sizes) < header[-1] or len(body) < sum(sizes):
            return "is damaged or cut: its pages are not whole"
        page = header[:22] + bytes(4) + header[26:] + sizes + body
        if _checksum(page) != int.from_bytes(header[22:26], "little"):
            return "is damaged: a page does not fit its checksum"
        if stream and (header[5] & FIRST_PAGE or header[14:18] != stream):
            return SEVERAL
        if stream and int.from_bytes(header[18:22], "little") != (number + 1) % 2**32:
            return "is damaged: pages are missing within it"
        stream, number = header[14:18], int.from_bytes(header[18:22], "little")
        ended = bool(header[5] & LAST_PAGE)
    return None if ended else "is cut: its last page is missing"


def _checksum(page: bytes) -> int:
    """It returns the CRC-32 of Ogg: zlib's, with the bits the other way round and nothing inverted."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{mirrored:032b}"[::-1], 2)
