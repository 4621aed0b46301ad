"""Whatever is in a file of audio, reading it ends well or with a reason.

Its readers are in C: they have a process of their own, so that a signal is seen.
"""

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile import anything
from support.speech import RATE, encoded, tone, wav

FEW, MANY = 100, 10_000

READER = """
import struct, sys
from pathlib import Path
from data_pipeline.speech.audio import AudioForm, AudioRefused, Span, decode_flac, encode_flac, read_audio

path, answers = Path(sys.argv[1]), sys.stdout.buffer
while head := sys.stdin.buffer.read(4):
    content = sys.stdin.buffer.read(struct.unpack("<I", head)[0])
    path.write_bytes(content)
    answer = b"r"
    try:
        try:
            decode_flac(content, 8000, 40000)
        except ValueError:
            pass
        for span in (Span(), Span(0.25, 0.5, 0)):
            audio = read_audio(path, AudioForm(16000, 5.0), span)
            assert 0 < len(audio.samples_N) <= 80000
    except AudioRefused as error:
        answer = b"d"
    except BaseException as error:
        answer = repr(error).replace("\\n", " ").encode(errors="backslashreplace")
    answers.write(answer + b"\\n")
    answers.flush()
"""

SOUND = [
    wav(tone(0.7)),
    encoded(tone(0.7), "WAV", "FLOAT"),
    encoded(tone(0.7), "WAV", "MS_ADPCM"),
    encoded(tone(0.7), "FLAC", "PCM_16"),
    encoded(tone(0.7), "OGG", "VORBIS"),
]
HEADER = 60
"""Bytes in which most of the numbers stand that tell what a file holds."""


def odd_audio(chance: random.Random) -> bytes:
    """It is a file with bytes changed, most of them in its header."""
    content = chance.choice(SOUND)
    if chance.random() < 0.2:
        return content
    if chance.random() < 0.5:
        return anything(chance, content)
    header = bytearray(content[:HEADER])
    for _ in range(chance.randint(1, 3)):
        width = chance.choice([1, 2, 4])
        place = chance.randrange(HEADER - width)
        value = chance.choice([0, 1, 2, 3, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, RATE])
        header[place : place + width] = (value % 256**width).to_bytes(width, chance.choice(["little", "big"]))
    return bytes(header) + content[HEADER:]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    words = [sys.executable, "-c", READER, str(tmp_path / "audio")]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_audio_is_read_or_refused(reader: "subprocess.Popen[bytes]", examples: int) -> None:
    ends = {b"r\n": 0, b"d\n": 0}

    @settings(
        max_examples=examples,
        derandomize=examples == FEW,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1))
    def check(seed: int) -> None:
        assert reader.stdin
        assert reader.stdout
        odd = odd_audio(random.Random(seed))
        reader.stdin.write(struct.pack("<I", len(odd)) + odd)
        reader.stdin.flush()
        answer = reader.stdout.readline()
        assert answer in ends, f"ended with {answer or reader.wait(60)!r}"
        ends[answer] += 1

    check()
    assert all(ends.values()), "no input was sound enough to get past the first look"
