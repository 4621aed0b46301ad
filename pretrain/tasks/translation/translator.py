"""Sentences are translated by an encoder-decoder with the tokenizers that its data was made with.

B  sources, S  tokens of the longest
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat

import numpy as np
import torch
from torch import nn

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.translation.batch import PADDING, PairBatch
from data_pipeline.translation.collate import padded, pair_batch
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.corpus import Pair, ParallelCorpus, RawFiles
from data_pipeline.translation.sentences import Ids
from parallel.pipeline import SequentialLayers
from pretrain.models.cache import EncoderStates
from pretrain.tasks.scores import Score
from pretrain.tasks.translation.decoding import EncoderDecoder
from pretrain.tasks.translation.scores import scores
from pretrain.tasks.translation.text import PairCodec
from pretrain.tasks.translator import Ends, Translator


class PairTranslator(Translator):
    """It translates from the source's language into the target's."""

    def __init__(self, codec: PairCodec, data: TranslationConfig) -> None:
        self._codec = codec
        end = self._codec.end_of_text
        self.ends = Ends(end, end, PADDING, data.max_target_length)
        self.longest_source = data.max_source_length

    def encode(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._codec.decode(tokens)

    def read(
        self, model: SequentialLayers, sources: Sequence[Sequence[int]]
    ) -> tuple[nn.ModuleList, EncoderStates]:
        both = EncoderDecoder(model)
        source_BS = torch.from_numpy(padded([np.array(tokens) for tokens in sources]))
        device = next(model.parameters()).device
        return both.decoder, both.read(source_BS.to(device))

    def batches(self, source: str, target: str, samples: int) -> Iterator[PairBatch]:
        corpus = ParallelCorpus(RawFiles((source,), (target,)))
        pairs = chain.from_iterable(repeat(pair, pair.count) for pair in corpus.pairs())
        encoded = (self._encoded(number, pair) for number, pair in enumerate(pairs, 1))
        while some := list(islice(encoded, samples)):
            yield pair_batch(some)

    def pairs(self, batch: Batch) -> list[tuple[list[int], str]]:
        assert isinstance(batch, PairBatch)
        sides = zip(batch.source_BS.tolist(), batch.targets_BT.tolist(), strict=True)
        real = (
            ([token for token in source if token != PADDING], target)
            for source, target in sides
            if target[0] != PADDING
        )
        return [
            ([] if self._codec.is_blank(source) else source, self.decode(target)) for source, target in real
        ]

    def scores(self, translations: Sequence[str], references: Sequence[str]) -> tuple[Score, ...]:
        return scores(translations, references)

    def _encoded(self, number: int, pair: Pair) -> tuple[Ids, Ids]:
        sides = self._codec.encode(pair.source), self._codec.encode_target(pair.target)
        limits = self.longest_source, self.ends.longest
        for side, ids, limit in zip(("source", "target"), sides, limits, strict=True):
            if len(ids) > limit:
                raise DataError(
                    f"pair {number}: the {side} has {len(ids)} tokens, its end included, but the model was trained "
                    f"for {limit} (data.max_{side}_length); leave the pair out"
                )
        return np.array(sides[0], np.uint32), np.array(sides[1], np.uint32)
