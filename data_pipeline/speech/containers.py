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

FIXED_SIZE = b"\xff\xf8"
"""What the frames of a FLAC begin with where all but the last have the same number of samples."""

OVERLAP = 16
"""Bytes that are looked through twice, so that nothing of interest is cut."""

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
"""Of a WAV, or blocks of a FLAC, that the audio is looked for behind."""

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
    """It looks for a second stream, and for frames behind those that the header counts: decoders read neither."""
    signs = {SEVERAL: FLAC_BEGINNING}
    if behind := _frame_behind(raw):
        signs[LONGER] = behind
    before = b""
    raw.seek(1)
    while block := raw.read(SCANNED_BYTES):
        for fault, sign in signs.items():
            if sign.search(before + block):
                return fault
        before = (before + block)[-OVERLAP:]
    return None


def _frame_behind(raw: BufferedReader) -> re.Pattern[bytes] | None:
    """It returns what the first frame behind those that the header of a FLAC counts begins with (RFC 9639, 9.1); None
    where these can fill the file, however small it says they are, or where the header does not tell."""
    raw.seek(8)
    facts = raw.read(18)
    least, most = int.from_bytes(facts[:2], "big"), int.from_bytes(facts[2:4], "big")
    largest, samples = int.from_bytes(facts[7:10], "big"), int.from_bytes(facts[13:], "big") % 2**36
    raw.seek(place := _end_of_blocks(raw))
    first = raw.read(4)
    if not (len(first) == 4 and 16 <= least == most and largest and samples and first[:2] == FIXED_SIZE):
        return None
    number = -(-samples // most)
    if os.fstat(raw.fileno()).st_size - place <= number * largest:
        return None
    codes = (bytes(high << 4 | byte & 15 for high in range(16)) for byte in first[2:])
    size, channels = (b"[%b]" % re.escape(code) for code in codes)
    return re.compile(FIXED_SIZE + size + channels + re.escape(_coded(number)), re.DOTALL)


def _end_of_blocks(raw: BufferedReader) -> int:
    """It returns the place in a FLAC behind the blocks of facts about it, where the frames begin."""
    place = 4
    for _ in range(MOST_CHUNKS):
        raw.seek(place)
        header = raw.read(4)
        place += 4 + int.from_bytes(header[1:], "big")
        if len(header) < 4 or header[0] >= 0x80:  # it is the last one
            break
    return place


def _coded(number: int) -> bytes:
    """It returns the number of a frame as it is stored: as UTF-8 would have that character, also beyond the last."""
    if number < 0x80:
        return bytes([number])
    more = next(count for count in range(1, 7) if number < 1 << 5 * count + 6)
    tail = bytes(0x80 | number >> 6 * place & 0x3F for place in reversed(range(more)))
    return bytes([0xFF << 7 - more & 0xFF | number >> 6 * more]) + tail


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
