"""Small encoders of speech: configurations, and batches of random utterances."""

from typing import Any

import numpy as np
import torch
from support.training import Layout, make_config

from data_pipeline.reading.share import counts_by_cost
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.config import SpeechConfig
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.tasks.speech.config import SpeechModelConfig

UNITS, MEL_BINS, MAX_SECONDS = 11, 12, 0.6
"""The blank is one of the units; 58 frames, 20 outputs."""
LONGEST = 6
"""Units of the longest transcript: with blanks between them they fit into the shortest utterance."""


def speech_config(layout: Layout, model: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    """It returns the configuration of a run with four blocks."""
    base = make_config(layout)
    table: dict[str, Any] = {
        "num_layers": 4,
        "hidden_size": 32,
        "vocabulary_size": UNITS,
        "activation_checkpointing": layout.checkpointing,
        **(model or {}),
    }
    table["attention"] = {"num_heads": 4, **table.get("attention", {})}
    common = base.data.model_dump(exclude={"kind", "sequence_length"})
    heard = SpeechConfig(**common, max_seconds=MAX_SECONDS, mel_bins=MEL_BINS, sample_rate=8000, **data)
    return base.model_copy(update={"model": SpeechModelConfig.model_validate(table), "data": heard})


def speech_batches(config: RunConfig, mesh: ParallelMesh, step: int) -> list[SpeechBatch]:
    """It returns this rank's micro-batches of a global batch that depends on the step alone.

    Each is as long as its longest utterance, and those of long ones have fewer; one utterance of the global batch is
    damaged.
    """
    generator = torch.Generator().manual_seed(step)
    size, data = config.data.global_batch_size, config.data
    frames = torch.randint(3 * (2 * LONGEST + 1), data.max_frames + 1, (size,), generator=generator).tolist()
    heard = [torch.randn(n, data.mel_bins, generator=generator) for n in frames]
    lengths = torch.randint(1, LONGEST + 1, (size,), generator=generator).tolist()
    said = [torch.randint(1, config.model.vocabulary_size, (n,), generator=generator) for n in lengths]
    heard[1], said[1] = torch.zeros(1, data.mel_bins), torch.zeros(0, dtype=torch.int64)
    frames[1] = 1
    rising = np.argsort(np.array(frames, np.int32), kind="stable")
    counts = counts_by_cost(np.array(frames, np.int32)[rising], size // data.micro_batch_size)
    rows = np.split(rising, np.cumsum(counts)[:-1])[mesh.data.rank :: mesh.data.size]
    return [speech_batch([heard[i] for i in part], [said[i] for i in part]) for part in rows]


def speech_batch(heard: list[torch.Tensor], said: list[torch.Tensor]) -> SpeechBatch:
    """It pads utterances, features (T, M) and ids (U,), to the longest of the batch; one without ids is damaged."""
    pad = torch.nn.utils.rnn.pad_sequence
    lengths_B = torch.tensor([len(ids) for ids in said])
    return SpeechBatch(
        features_BTM=pad(heard, batch_first=True),
        frames_B=torch.tensor([len(features) for features in heard]),
        units_BU=pad(said, batch_first=True),
        lengths_B=lengths_B,
        weights_B=(lengths_B > 0).float(),
    )
