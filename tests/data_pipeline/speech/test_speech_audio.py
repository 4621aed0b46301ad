"""Audio of all kinds is brought into one form, and what cannot be used says why."""

import re
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from support.speech import RATE, encoded, tone, wav

from data_pipeline.errors import DataError
from data_pipeline.speech import audio, containers
from data_pipeline.speech.audio import (
    AudioForm,
    AudioRefused,
    Span,
    decode_flac,
    encode_flac,
    read_audio,
    resampled,
)

FORM = AudioForm(RATE, 2.0)
TONE = tone(1.0)
STEREO = np.stack([tone(1.0, 300), tone(1.0, 500)], 1)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "audio"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content", [wav(TONE), encoded(TONE, "FLAC", "PCM_16"), encoded(TONE, "WAV", "PCM_24")]
)
def test_what_has_the_form_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    audio = read_audio(written(tmp_path, content), FORM)
    assert np.array_equal(audio.samples_N, TONE)
    assert audio.changes == (
        () if content[:4] == b"fLaC" or len(content) < 20_000 else ("rounded to 16 bits",)
    )


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=300))
def test_stored_audio_comes_back_to_the_last_bit(samples: list[int]) -> None:
    given_N = np.array(samples, np.int16)
    wave_N = decode_flac(encode_flac(given_N, 16_000), 16_000, 300)
    assert wave_N.dtype == np.float32
    assert np.array_equal(wave_N * 32768, given_N)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no FLAC"),
        (wav(TONE), "is WAV of 1 channels"),
        (
            encoded(TONE, "FLAC", "PCM_16", 16_000),
            "16000 Hz and 8000 samples, not FLAC of 1 channel, 8000 Hz",
        ),
        (encoded(tone(3.0), "FLAC", "PCM_16"), "at most 8000 samples"),
        (encoded(STEREO, "FLAC", "PCM_16"), "of 2 channels"),
        (encoded(TONE, "FLAC", "PCM_24"), "is FLAC"),
        (encoded(TONE, "FLAC", "PCM_16")[:-900], "is no FLAC: .*lost sync"),
    ],
)
def test_what_was_not_stored_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        decode_flac(content, RATE, 8000)


def test_channels_become_one(tmp_path: Path) -> None:
    path = written(tmp_path, wav(STEREO))
    mean = read_audio(path, FORM)
    assert np.abs(mean.samples_N - STEREO.mean(1)).max() <= 0.5
    assert mean.changes == ("mean of 2 channels taken",)
    for chosen in (read_audio(path, AudioForm(RATE, 2.0, 1)), read_audio(path, FORM, Span(channel=1))):
        assert np.array_equal(chosen.samples_N, STEREO[:, 1])
        assert chosen.changes == ("number 1, from 0, of 2 channels taken",)
    with pytest.raises(AudioRefused, match="has no channel 2, counted from 0"):
        read_audio(path, FORM, Span(channel=2))


def test_channels_that_cancel_out_are_silence(tmp_path: Path) -> None:
    with pytest.raises(AudioRefused, match="is silent"):
        read_audio(written(tmp_path, wav(np.stack([TONE, -TONE], 1))), FORM)


@pytest.mark.parametrize("rate", [11_025, 16_000, 44_100])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    """A tone stays the tone that it is, as long as it is."""
    seconds = np.arange(rate) / rate
    audio = read_audio(
        written(tmp_path, wav((9000 * np.sin(2 * np.pi * 440 * seconds)).astype(np.int16), rate)), FORM
    )
    wanted_N = 9000 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert len(audio.samples_N) == RATE
    assert np.abs(audio.samples_N - wanted_N)[200:-200].max() < 20
    assert audio.changes == (f"resampled from {rate} Hz",)


@given(st.integers(0, 3000), st.sampled_from([0.9, 1.05, 1.1, 2.0]))
def test_resampled_audio_has_as_many_samples_as_it_should(samples: int, speed: float) -> None:
    """Frames of features, and the room for transcripts, are counted by it."""
    found = len(resampled(np.zeros(samples, np.float32), speed * RATE, RATE))
    assert abs(found - samples / speed) <= 0.5


def test_spans_are_parts_of_a_recording(tmp_path: Path) -> None:
    path = written(tmp_path, wav(TONE))
    for span, first, stop in (
        (Span(0.25, 0.5), 2000, 6000),
        (Span(0.5), 4000, 8000),
        (Span(0.5, 0.52), 4000, 8000),  # as lists round
        (Span(0.0, 0.98), 0, 8000),
        (Span(0.0, 0.9), 0, 7200),
    ):
        assert np.array_equal(read_audio(path, FORM, span).samples_N, TONE[first:stop])
    for span in (Span(0.5, 0.6), Span(1.0), Span(2.0, 1.0)):
        with pytest.raises(AudioRefused, match="ends before the span that is meant") as refused:
            read_audio(path, FORM, span)
        assert "of 1.00 s" in refused.value.detail


def test_a_part_of_a_long_recording_is_read(tmp_path: Path) -> None:
    long_N = tone(30.0)
    for content in (wav(long_N), encoded(long_N, "FLAC", "PCM_16")):
        samples_N = read_audio(written(tmp_path, content), FORM, Span(20.0, 1.5)).samples_N
        assert np.array_equal(samples_N, long_N[160_000:172_000])


def spoiled(content: bytes, place: float = 0.6) -> bytes:
    spot = int(place * len(content))
    return content[:spot] + bytes([content[spot] ^ 0xFF]) + content[spot + 1 :]


FLAC, OGG, OPUS = (
    encoded(TONE, "FLAC", "PCM_16"),
    encoded(TONE, "OGG", "VORBIS"),
    encoded(TONE, "OGG", "OPUS"),
)


def without_a_page(content: bytes) -> bytes:
    *_, begin, end, _ = (match.start() for match in re.finditer(b"OggS", content))
    return content[:begin] + content[end:]


def mixed(one: bytes, other: bytes) -> bytes:
    """Both streams at once: their first pages come first, the others behind them."""
    (first, rest), (second, more) = (
        (c[: c.index(b"OggS", 4)], c[c.index(b"OggS", 4) :]) for c in (one, other)
    )
    return first + second + rest + more


LONG_FLAC = encoded(
    np.random.default_rng(0).integers(-9000, 9000, 600_000).astype(np.int16), "FLAC", "PCM_16"
)
"""Of more frames than one byte can count."""


def shortened(content: bytes, samples: int) -> bytes:
    """A FLAC whose header says so many samples."""
    facts = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
    return content[:18] + facts.to_bytes(8, "big") + content[26:]


def with_length(content: bytes, audio: int) -> bytes:
    """A WAV whose header says so many bytes of audio."""
    return content[:40] + audio.to_bytes(4, "little") + content[44:]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is an empty file"),
        (b"RIFF", "is no WAV, FLAC or Ogg"),
        (b"not audio at all", "is no WAV, FLAC or Ogg"),
        (encoded(TONE, "AIFF", "PCM_16"), "is no WAV, FLAC or Ogg"),
        (wav(TONE[:0]), "holds no audio"),
        (wav(TONE)[:-4000], "is cut: it is shorter than its header says"),
        (wav(TONE)[:4] + b"\xff" * 4 + wav(TONE)[8:-4000], "is cut: it is shorter than its header says"),
        (wav(TONE)[:30], "is cut: it is shorter than its header says"),
        (FLAC[:-900], "is damaged, or no audio"),
        (FLAC[:9], "is damaged, or no audio"),
        (spoiled(FLAC), "is damaged, or no audio"),
        (OGG[:-1], "is damaged or cut: its pages are not whole"),
        (OGG[: OGG.rindex(b"OggS")], "is cut: its last page is missing"),
        (spoiled(OGG), "is damaged: a page does not fit its checksum"),
        (spoiled(OPUS), "is damaged: a page does not fit its checksum"),
        (without_a_page(encoded(tone(9.0), "OGG", "VORBIS")), "is damaged: pages are missing within it"),
        (OGG + OGG, "holds several streams"),
        (OGG + OPUS, "holds several streams"),
        (mixed(OGG, OPUS), "holds several streams"),
        (FLAC + FLAC, "holds several streams"),
        (shortened(FLAC, 100), "is damaged: it holds more audio than its header says"),
        (shortened(LONG_FLAC, 300_000), "is damaged: it holds more audio than its header says"),
        (with_length(wav(TONE), 10), "is damaged: it holds more audio than its header says"),
        (with_length(wav(TONE), 11), "is damaged: it holds more audio than its header says"),
        (wav(np.full(4000, 17, np.int16)), "is silent"),
        (wav(np.arange(4000, dtype=np.int16) % 3), "is silent"),
        (encoded(np.full(4000, np.nan, np.float32), "WAV", "FLOAT"), "no numbers"),
        (encoded(np.append(TONE / 32768, np.inf), "WAV", "FLOAT"), "no numbers"),
        (wav(tone(2.1)), "is longer than 2 s"),
        (wav(TONE, 900), "a sample rate that no recording has"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(AudioRefused, match=told):
        read_audio(written(tmp_path, content), FORM)


ODD = with_length(wav(TONE)[:-1], 2 * RATE - 1)
"""Its audio ends at an odd place, behind which some writers have a byte of padding and some do not."""


@pytest.mark.parametrize(
    "behind",
    [
        b"LIST" + (2000).to_bytes(4, "little") + bytes(range(200)) * 10,
        b"TAG" + b"x" * 1500,
        b"ID3" + b"x" * 1500,
        bytes(5000),
        b"x" * 100,
    ],
)
@pytest.mark.parametrize(
    "content", [wav(TONE), ODD, ODD + b"\0", FLAC], ids=["WAV", "odd WAV", "odd and padded WAV", "FLAC"]
)
def test_what_writers_put_behind_audio_is_no_audio(tmp_path: Path, content: bytes, behind: bytes) -> None:
    samples_N = read_audio(written(tmp_path, content + behind), FORM).samples_N
    assert np.array_equal(samples_N, TONE[: len(samples_N)])
    assert len(samples_N) >= RATE - 1


@pytest.mark.parametrize(
    ("number", "told"),
    [
        *[(0, "00"), (127, "7f"), (128, "c280"), (2047, "dfbf"), (2048, "e0a080"), (0xFFFF, "efbfbf")],
        *[(1 << 16, "f0908080"), (0x10FFFF, "f48fbfbf"), ((1 << 36) - 1, "febfbfbfbfbfbf")],
    ],
)
def test_numbers_of_frames_are_coded_as_characters_are(number: int, told: str) -> None:
    assert containers._coded(number).hex() == told


def test_a_second_stream_is_found_wherever_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "SCANNED_BYTES", 9)
    for shift in range(9):
        with pytest.raises(AudioRefused, match="holds several streams"):
            read_audio(written(tmp_path, FLAC + b"x" * shift + FLAC), FORM)


@pytest.mark.parametrize("content", [OGG, OPUS])
def test_lossy_audio_is_read(tmp_path: Path, content: bytes) -> None:
    audio = read_audio(written(tmp_path, content), FORM)
    assert abs(len(audio.samples_N) - RATE) <= 400
    assert np.corrcoef(audio.samples_N[:7500], TONE[:7500])[0, 1] > 0.9


def test_a_stream_says_that_it_does_not_know_its_length(tmp_path: Path) -> None:
    """As of a FLAC that was written to a pipe; a WAV that was is read to its end."""
    flac = bytearray(FLAC)
    flac[21] &= 0xF0  # the length in samples, 36 bits
    flac[22:26] = bytes(4)
    with pytest.raises(AudioRefused, match="does not say how long it is"):
        read_audio(written(tmp_path, bytes(flac)), FORM)
    piped = wav(TONE)
    piped = piped[:4] + b"\xff" * 4 + piped[8:40] + b"\xff" * 4 + piped[44:]
    assert np.array_equal(read_audio(written(tmp_path, piped), FORM).samples_N, TONE)


def test_too_loud_audio_is_clipped_and_told(tmp_path: Path) -> None:
    loud = (1.5 * np.sin(np.arange(8000) / 9)).astype(np.float32)
    audio = read_audio(written(tmp_path, encoded(loud, "WAV", "FLOAT")), FORM)
    assert (audio.samples_N.min(), audio.samples_N.max()) == (-32768, 32767)
    assert audio.changes == ("rounded to 16 bits", "clipped")
    full = (np.sign(np.sin(np.arange(8000) / 9))).astype(np.float32)  # 1.0 is full scale, not beyond
    assert "clipped" not in read_audio(written(tmp_path, encoded(full, "WAV", "FLOAT")), FORM).changes


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_all_measure_are_clipped(tmp_path: Path) -> None:
    """And do not become what is no number on the way to another rate."""
    huge = np.where(np.arange(16_000) % 99 < 50, 3e38, -3e38).astype(np.float32)
    audio = read_audio(written(tmp_path, encoded(huge, "WAV", "FLOAT", 16_000)), FORM)
    assert len(audio.samples_N) == RATE
    assert audio.changes == ("resampled from 16000 Hz", "rounded to 16 bits", "clipped")


def test_pages_of_one_recording_are_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many utterances are parts of it; once more where it has changed."""
    seen: list[str] = []
    look = containers._fault_of_pages
    monkeypatch.setattr(containers, "_fault_of_pages", lambda raw: seen.append("page") or look(raw))
    for times, content in enumerate((OGG, spoiled(OGG)), start=1):
        path = written(tmp_path, content)
        for start in (0.1, 0.2, 0.3):
            with suppress(AudioRefused):
                read_audio(path, FORM, Span(start, 0.5))
        assert len(seen) == times


def test_four_hours_are_refused_by_the_header_and_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        file.write(TONE)
    header = bytearray(path.read_bytes()[:44])
    size = 4 * 3600 * RATE * 2
    header[4:8], header[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    with path.open("r+b") as raw:
        raw.write(header)
        raw.truncate(44 + size)
    tracemalloc.start()
    with pytest.raises(AudioRefused, match="is longer than 2 s") as refused:
        read_audio(path, FORM)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert refused.value.detail == "14400.0 s"


def test_only_files_are_opened(tmp_path: Path) -> None:
    for name, told in (("nothing", "No such file"), (".", "not a regular file"), ("a" * 300, "too long")):
        with pytest.raises(AudioRefused, match=f"cannot be read: .*{told}"):
            read_audio(tmp_path / name, FORM)
    with pytest.raises(AudioRefused, match="not a regular file"):
        read_audio(Path("/dev/zero"), FORM)


def test_a_recording_that_is_still_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = written(tmp_path, wav(TONE)), audio._mono

    def slowly(*arguments: Any) -> Any:
        with path.open("ab") as file:
            file.write(b"more")
        return read(*arguments)

    monkeypatch.setattr(audio, "_mono", slowly)
    with pytest.raises(DataError, match="audio: has changed while it was read"):
        read_audio(path, FORM)


def test_trouble_of_the_machine_is_no_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, follow: bool) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("data_pipeline.speech.audio.open_regular", broken)
    with pytest.raises(DataError, match="Input/output error"):
        read_audio(tmp_path / "x", FORM)
