"""Small recordings, corpora of them in all formats, and prepared speech whose utterances can be told apart."""

import io
import json
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from data_pipeline.speech.audio import encode_flac
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.encoding import Encoded
from data_pipeline.speech.splits import UtteranceWriter
from data_pipeline.speech.units import CharacterUnits
from data_pipeline.text.splits import Split

RATE = 8_000
DIGITS = CharacterUnits("0123456789")
"""The units of numbered utterances, which say their number with four of them."""
LONGEST = 0.7
"""Seconds of no numbered utterance."""

Samples = NDArray[np.int16]


def tone(seconds: float, pitch: float = 440.0, rate: int = RATE) -> Samples:
    """It returns a tone with some noise."""
    count = round(seconds * rate)
    wave_N = 0.3 * np.sin(2 * np.pi * pitch / rate * np.arange(count))
    noise_N = np.random.default_rng(round(pitch)).normal(0, 0.02, count)
    return ((wave_N + noise_N) * 32767).astype(np.int16)


def wav(samples: Samples, rate: int = RATE) -> bytes:
    """It returns the content of a WAV in 16 bits, of samples (N) or of several channels (N, C)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", ""))
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def encoded(samples: NDArray[Any], kind: str, subtype: str, rate: int = RATE) -> bytes:
    """It returns the content of a file of libsndfile's format `kind`."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def write_manifest(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """It writes a manifest of NeMo, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples_of(number: int) -> int:
    """It returns how long a numbered utterance is: all lengths occur, in no order."""
    return 1600 + number * 7919 % 3200


def write_speech(folder: Path, utterances: int, *, first: int = 0, split: Split = "train") -> Path:
    """It writes utterances `first`, `first + 1`, ... to `folder/SPLIT`, in shards of 50; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DIGITS.file).write_bytes(DIGITS.content)
    with UtteranceWriter(folder, split, 50) as writer:
        for number in range(first, first + utterances):
            samples_N = tone(samples_of(number) / RATE, 200.0 + number)
            units = np.array(DIGITS.encode(f"{number:04d}"), np.uint16)
            writer.add(Encoded(encode_flac(samples_N, RATE), units, len(samples_N), ()))
        writer.finish(DIGITS, RATE, 0.02)
    return folder


def speech_config(*paths: object, weights: tuple[float, ...] = (), **settings: object) -> SpeechConfig:
    """It returns a configuration that reads `paths`, with a global batch of 24."""
    weights = weights or (1.0,) * len(paths)
    sources = [{"path": str(path), "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    defaults = {
        "sample_rate": RATE,
        "max_seconds": LONGEST,
        "mel_bins": 8,
        "micro_batch_size": 4,
        "global_batch_size": 24,
        "bucket_size": 4,
        "prefetch_steps": 0,
    }
    return SpeechConfig.model_validate({"sources": sources, **defaults, **settings})


def utterance_numbers(step: list[SpeechBatch]) -> list[int]:
    """It returns which utterances a step of micro-batches holds; -1 for a masked one."""
    return [
        int(DIGITS.decode(units[:length].tolist()) or -1)
        for batch in step
        for units, length in zip(batch.units_BU, batch.lengths_B.tolist(), strict=True)
    ]
