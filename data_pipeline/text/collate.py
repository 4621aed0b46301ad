"""Samples of text become batches of tensors here.

B  samples in a micro-batch
S  targets in a sequence; a block holds S + 1 ids
"""

from collections.abc import Sequence

import numpy as np
import torch

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Sample
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.blocks import BlockCodec
from data_pipeline.text.manifest import TextManifest


class TokenCollator:
    """It stacks token blocks into `TokenBatch`es; a sample without fields becomes zeros of weight 0.

    Raises DataError for a sound sample that is not what its manifest says.
    """

    def __init__(self, manifest: TextManifest) -> None:
        self._codec = BlockCodec(manifest.sequence_length, manifest.dtype)
        self._vocabulary_size = manifest.tokenizer.vocabulary_size

    def __call__(self, samples: Sequence[Sample]) -> TokenBatch:
        blocks_BS1 = np.zeros((len(samples), self._codec.sequence_length + 1), np.int64)
        weights_BS = torch.ones(len(samples), self._codec.sequence_length)
        for row, sample in enumerate(samples):
            if sample.fields:
                blocks_BS1[row] = self._decode(sample)
            else:
                weights_BS[row] = 0
        ids_BS1 = torch.from_numpy(blocks_BS1)
        return TokenBatch(
            tokens_BS=ids_BS1[:, :-1].contiguous(),
            targets_BS=ids_BS1[:, 1:].contiguous(),
            weights_BS=weights_BS,
            damaged=tuple(sample.damage for sample in samples if sample.damage),
        )

    def _decode(self, sample: Sample) -> np.ndarray:
        try:
            block_S1 = self._codec.decode(sample.fields)
        except ValueError as error:
            raise DataError(f"{sample.place} is {error}") from error
        # Beyond the vocabulary a look-up fails, or over tensor-parallel ranks gives zeros without a word.
        if (largest := int(block_S1.max())) >= self._vocabulary_size:
            raise DataError(
                f"{sample.place} has the id {largest}, but the tokenizer has {self._vocabulary_size} ids, from 0; "
                "the shards were made with another tokenizer than the manifest says: prepare the data again"
            )
        return block_S1
