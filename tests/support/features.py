"""Features of speech: the settings that they follow from, and sounds to compute them of."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.speech.config import SpeechConfig


def features_config(**data: Any) -> SpeechConfig:
    """It returns the [data] of a run, in which nothing but what is given here matters."""
    unread = {"sources": [{"path": "unread"}], "micro_batch_size": 1, "global_batch_size": 1}
    return SpeechConfig.model_validate({**unread, "max_seconds": 20.0, **data})


def sounds(sample_rate: int, seconds: float = 0.5) -> dict[str, NDArray[np.float32]]:
    """It returns audio in 16 bits of one kind each, loud and quiet."""
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    noise = np.random.default_rng(sample_rate).standard_normal(len(times))
    tone = np.sin(2 * np.pi * 440 * times)
    made = {
        "noise": 0.2 * noise,
        "faint noise": noise / 2**14,
        "tone": 0.9 * tone,
        "faint tone": tone / 2**10,
        "tone and noise beside it, around a constant": 0.4 + 0.5 * tone + 0.001 * noise,
        "rising": 2 * times * seconds * noise,
        "constant": np.full(len(times), 0.25),
        "silence": np.zeros(len(times)),
    }
    return {
        name: (np.round(32768 * wave).clip(-32768, 32767) / 32768).astype(np.float32)
        for name, wave in made.items()
    }
