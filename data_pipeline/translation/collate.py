"""Pairs of sentences become batches of tensors here.

B  samples in a micro-batch
S  tokens in the source
T  tokens in the target
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Sample
from data_pipeline.translation.batch import PairBatch
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.sentences import PADDING, Ids, SentenceCodec


class PairCollator:
    """It pads pairs to the longest of a micro-batch; a sample without fields becomes padding alone, of weight 0.

    Raises DataError for a sound sample that is not what its manifest says.
    """

    def __init__(self, manifest: TranslationManifest) -> None:
        self._codec = SentenceCodec(manifest.dtype)
        self._vocabulary_sizes = [entry.vocabulary_size for entry in manifest.tokenizers]

    def __call__(self, samples: Sequence[Sample]) -> PairBatch:
        nothing = np.zeros(0, np.int64)
        pairs = [self._decode(sample) if sample.fields else (nothing, nothing) for sample in samples]
        return pair_batch(pairs, tuple(sample.damage for sample in samples if sample.damage))

    def _decode(self, sample: Sample) -> tuple[Ids, Ids]:
        try:
            pair = self._codec.decode(sample.fields)
        except ValueError as error:
            raise DataError(f"{sample.place}: {error}") from error
        for ids, size in zip(pair, self._vocabulary_sizes, strict=True):
            # Beyond the vocabulary a look-up fails, or over tensor-parallel ranks gives zeros without a word.
            if (largest := int(ids.max())) >= size:
                raise DataError(
                    f"{sample.place} has the id {largest}, but the tokenizer has {size} ids, from 0; the shards were "
                    "made with another tokenizer than the manifest says: prepare the data again"
                )
        return pair


def pair_batch(
    pairs: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]], damaged: tuple[str, ...] = ()
) -> PairBatch:
    """It pads pairs of ids, each side with its end of text, to the longest of them."""
    targets_BT = padded([target for _, target in pairs])
    # The decoder begins with the end of text, as if another sentence came before.
    begun_BT = padded([np.concatenate([target[-1:], target[:-1]]) for _, target in pairs])
    return PairBatch(
        source_BS=torch.from_numpy(padded([source for source, _ in pairs])),
        inputs_BT=torch.from_numpy(begun_BT),
        targets_BT=torch.from_numpy(targets_BT),
        weights_BT=torch.from_numpy((targets_BT != PADDING).astype(np.float32)),
        damaged=damaged,
    )


def padded(sentences: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    """It stacks sentences, filled up to the longest, and to one token where all are empty."""
    ids_BS = np.full((len(sentences), max(1, *map(len, sentences))), PADDING, np.int64)
    for row, ids in enumerate(sentences):
        ids_BS[row, : len(ids)] = ids
    return ids_BS
