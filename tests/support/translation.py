"""Small encoder-decoders that translate: configurations, batches of random pairs, and the engine of a run."""

from functools import partial
from typing import Any

import torch
from support.training import Layout, make_config

from data_pipeline.translation.batch import PADDING, PairBatch
from data_pipeline.translation.config import TranslationConfig
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.tasks.translation.config import TranslatorConfig

SOURCE, TARGET = 90, 70
"""Sizes of the vocabularies, unless they are one."""
SOURCE_LENGTH, TARGET_LENGTH = 24, 17
END = 2
"""The end of a sentence."""


def translation_config(layout: Layout, model: dict[str, Any] | None = None) -> RunConfig:
    """It returns the configuration of a run with two blocks on either side."""
    base = make_config(layout)
    table: dict[str, Any] = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "hidden_size": 32,
        "source_vocabulary_size": SOURCE,
        "target_vocabulary_size": SOURCE,
        "vocabulary_multiple": 64,
        "activation_checkpointing": layout.checkpointing,
        **(model or {}),
    }
    table["attention"] = {"num_heads": 4, **table.get("attention", {})}
    common = base.data.model_dump(exclude={"kind", "sequence_length"})
    data = TranslationConfig(**common, max_source_length=SOURCE_LENGTH, max_target_length=TARGET_LENGTH)
    return base.model_copy(update={"model": TranslatorConfig.model_validate(table), "data": data})


def translation_batches(config: RunConfig, mesh: ParallelMesh, step: int) -> list[PairBatch]:
    """It returns this rank's micro-batches of a global batch that depends on the step alone.

    Each is as long as its longest pair; one pair of the global batch is damaged.
    """
    generator = torch.Generator().manual_seed(step)
    size, model = config.data.global_batch_size, config.model
    draw = partial(sentences, size, generator=generator)
    source = draw(SOURCE_LENGTH - 1, model.source_vocabulary_size)
    target = draw(TARGET_LENGTH - 1, model.target_vocabulary_size)
    source[1], target[1] = [], []
    rows = torch.arange(size).view(-1, mesh.data.size, config.data.micro_batch_size)[:, mesh.data.rank]
    return [pair_batch([source[i] for i in part], [target[i] for i in part]) for part in rows.tolist()]


def sentences(size: int, longest: int, vocabulary: int, *, generator: torch.Generator) -> list[list[int]]:
    """It draws sentences of several lengths without their ends."""
    lengths = torch.randint(1, longest + 1, (size,), generator=generator).tolist()
    return [torch.randint(END + 1, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def pair_batch(sources: list[list[int]], targets: list[list[int]]) -> PairBatch:
    """It pads sentences to the longest of the batch; an empty pair is damaged."""
    predicted = padded([[*ids, END] if ids else [] for ids in targets])
    return PairBatch(
        source_BS=padded([[*ids, END] if ids else [] for ids in sources]),
        inputs_BT=padded([[END, *ids] if ids else [] for ids in targets]),
        targets_BT=predicted,
        weights_BT=(predicted != PADDING).float(),
    )


def padded(rows: list[list[int]]) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (length - len(row))] for row in rows])
