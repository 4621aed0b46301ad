"""Recorded audio is read, brought into one form, and stored without loss: mono, 16 bits, one rate.

N  samples of audio (of one channel),  C  channels
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.files import identity_of, open_regular
from data_pipeline.shown import shown
from data_pipeline.speech.containers import fault_of_container

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Samples a second that recordings have."""

HIGHEST_STORED_RATE = 65_535
"""Samples a second that every FLAC decoder takes."""

FULL_SCALE = 1 << 15
"""What a sample of 1.0 is in 16 bits."""

QUIET = 2
"""Steps of 16 bits between the lowest and the highest sample of what is silence, or its dither."""

SLACK_SECONDS = 0.05
"""Lists round times: a span that ends so close to the end of the audio, on either side, ends there."""

BLOCK_VALUES = 1 << 24
"""Samples of all channels together that are held before they become one channel."""

DEEP = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
"""Encodings of more than 16 bits, without loss."""

UNUSABLE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
)
"""Error numbers that are about a file; all others are the trouble of a machine, and say nothing about it."""

Samples = NDArray[np.int16]
Wave = NDArray[np.float32]
"""Audio of one channel in [-1, 1]."""


class AudioRefused(Exception):
    """Audio cannot be used. The message is the reason, in the words of all of its kind; `detail` is about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class AudioTooLong(AudioRefused):
    """It is longer than the longest may be; parts of it can be used."""


@dataclass(frozen=True)
class AudioForm:
    """It is what all audio is brought into, beside mono in 16 bits."""

    sample_rate: int
    longest_seconds: float
    channel: int | None = None
    """Of recordings with several, counted from 0; none: their mean."""


@dataclass(frozen=True)
class Span:
    """It is the part of a recording that is meant."""

    start: float = 0.0
    """Seconds."""
    seconds: float | None = None
    """None: to the end."""
    channel: int | None = None
    """The one that is meant, counted from 0, whatever `AudioForm` says."""


WHOLE = Span()
"""All of a recording."""


@dataclass(frozen=True)
class Audio:
    """It is audio in its form."""

    samples_N: Samples
    changes: tuple[str, ...]
    """What was done to it, in the words of all that it was done to."""


def read_audio(path: Path, form: AudioForm, span: Span = WHOLE) -> Audio:
    """It reads a WAV, FLAC or Ogg, and never more of it into memory than the longest audio has.

    Raises:
        AudioRefused: there is no such file, it is damaged or cut, empty, silent, too long, or has no such span.
        DataError: this machine cannot read it now.
    """
    with _opened(path) as raw, _decoding():
        if fault := fault_of_container(path, raw):
            raise AudioRefused(fault)
        os.lseek(raw.fileno(), 0, os.SEEK_SET)
        with soundfile.SoundFile(raw.fileno(), closefd=False) as file:
            if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
                raise AudioRefused("has a sample rate that no recording has", f"{file.samplerate} Hz")
            first, frames = _extent(file, span, form.longest_seconds)
            channel = span.channel
            if channel is None and file.channels > 1:
                channel = form.channel
            mono_N = _mono(file, first, frames, channel)
            changes = list(_changes(file, form.sample_rate, channel))
    if not np.isfinite(mono_N).all():
        raise AudioRefused("holds samples that are no numbers (NaN or infinite)")
    wave_N = resampled(mono_N.clip(-1, 1), file.samplerate, form.sample_rate)
    if not len(wave_N):
        raise AudioRefused("holds no audio")
    if max(np.abs(mono_N).max(), np.abs(wave_N).max()) > 1 + 0.5 / FULL_SCALE:
        changes.append("clipped")
    samples_N = np.rint(wave_N * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    if int(samples_N.max()) - int(samples_N.min()) <= QUIET:
        raise AudioRefused("is silent")
    return Audio(samples_N, tuple(changes))


def resampled(wave_N: Wave, from_rate: float, to_rate: float) -> Wave:
    """It returns audio of `from_rate` samples a second at `to_rate`, N x to_rate / from_rate samples, rounded."""
    if from_rate == to_rate:
        return wave_N
    wave: Wave = soxr.resample(wave_N, from_rate, to_rate, quality="HQ")
    return wave


def encode_flac(samples_N: Samples, sample_rate: int) -> bytes:
    """It returns audio as the content of a FLAC file."""
    file = io.BytesIO()
    soundfile.write(file, samples_N, sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def decode_flac(content: bytes | memoryview, sample_rate: int, most: int) -> Wave:
    """It returns the audio that `encode_flac` was given.

    Raises ValueError for other content, such as audio of another rate or of more than `most` samples.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            form = (file.format, file.subtype, file.channels, file.samplerate)
            if form != ("FLAC", "PCM_16", 1, sample_rate) or not 0 < file.frames <= most:
                raise ValueError(
                    f"is {file.format} of {file.channels} channels, {file.samplerate} Hz and {file.frames} samples, "
                    f"not FLAC of 1 channel, {sample_rate} Hz and at most {most} samples"
                )
            wave_N: Wave = file.read(dtype="float32")
            if len(wave_N) != file.frames:
                raise ValueError(f"has {len(wave_N)} samples, its header says {file.frames}")
    except soundfile.SoundFileError as error:
        raise ValueError(f"is no FLAC: {_said(error)}") from error
    return wave_N


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with open_regular(path, follow=True) as raw:
            before = identity_of(os.fstat(raw.fileno()))
            yield raw
            if identity_of(os.fstat(raw.fileno())) != before:
                raise DataError(f"{shown(path)}: has changed while it was read")
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise DataError(f"{shown(path)}: {error.strerror}") from error
        raise AudioRefused(f"cannot be read: {error.strerror}") from error


@contextmanager
def _decoding() -> Iterator[None]:
    """It turns what libsndfile says of a file into a refusal."""
    try:
        yield
    except soundfile.SoundFileError as error:
        raise AudioRefused("is damaged, or no audio", _said(error)) from error


def _said(error: Exception) -> str:
    return shown(getattr(error, "error_string", error))


def _extent(file: soundfile.SoundFile, span: Span, longest_seconds: float) -> tuple[int, int]:
    """It returns the first frame of a span, and how many it has, as the header tells it."""
    rate = file.samplerate
    if file.frames >= sys.maxsize >> 1:
        raise AudioRefused("does not say how long it is, as a stream does; write it to a file again")
    total = file.frames / rate
    if not file.frames:
        raise AudioRefused("holds no audio")
    end = total if span.seconds is None else span.start + span.seconds
    if abs(end - total) <= SLACK_SECONDS:
        end = total
    if not span.start < end <= total:
        raise AudioRefused(
            "ends before the span that is meant", f"{span.start:.2f} to {end:.2f} s of {total:.2f} s"
        )
    if end - span.start > longest_seconds:
        raise AudioTooLong(f"is longer than {longest_seconds:g} s", f"{end - span.start:.1f} s")
    first = round(span.start * rate)
    return first, min(round(end * rate), file.frames) - first


def _mono(file: soundfile.SoundFile, first: int, frames: int, channel: int | None) -> Wave:
    """It reads frames and returns one channel of them, or the mean of all."""
    if channel is not None and channel >= file.channels:
        raise AudioRefused(f"has no channel {channel}, counted from 0")
    if first:
        file.seek(first)
    parts, left = [np.zeros(0, np.float32)], frames
    while left:
        block_NC = file.read(min(left, BLOCK_VALUES // file.channels), dtype="float32", always_2d=True)
        if not len(block_NC):
            raise AudioRefused("is cut: it has less audio than its header says")
        parts.append(block_NC.mean(1) if channel is None else block_NC[:, channel])
        left -= len(block_NC)
    return np.concatenate(parts)


def _changes(file: soundfile.SoundFile, sample_rate: int, channel: int | None) -> Iterator[str]:
    if file.channels > 1:
        what = "mean" if channel is None else f"number {channel}, from 0,"
        yield f"{what} of {file.channels} channels taken"
    if file.samplerate != sample_rate:
        yield f"resampled from {file.samplerate} Hz"
    if file.subtype in DEEP:
        yield "rounded to 16 bits"
