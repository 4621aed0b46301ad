"""Targets are counted here in bytes and words of the text that they spell.

B  samples in a micro-batch
S  targets in a sequence
V  vocabulary size
"""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.source import Baseline, TargetMeasure
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.tokenizer import Tokenizer


class TextMeasure(TargetMeasure[TokenBatch]):
    """It counts bytes in UTF-8, and words as Python splits text: at white space. End-of-text is neither."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes_V = np.array(tokenizer.byte_lengths)
        self._targets: list[NDArray[np.int64]] = []

    def add(self, batch: TokenBatch) -> None:
        """It takes in the targets of weight 1."""
        self._targets.append(batch.targets_BS[batch.weights_BS > 0].cpu().numpy())

    def totals(self) -> dict[str, int]:
        """It returns the bytes and words so far."""
        ids = self._ids()
        ends = np.flatnonzero(ids == self._tokenizer.end_of_text)
        documents = np.split(ids, ends + 1)
        words = sum(len(self._tokenizer.decode(document.tolist()).split()) for document in documents)
        return {"byte": int(self._bytes_V[ids].sum()), "word": words}

    def baseline(self) -> Baseline:
        """It returns the loss of a model that knows how frequent each token is among these, and nothing else."""
        _, counts = np.unique(self._ids(), return_counts=True)
        shares = counts / counts.sum()
        return Baseline("a unigram model of this text", float(-(shares * np.log(shares)).sum()))

    def _ids(self) -> NDArray[np.int64]:
        return np.concatenate(self._targets) if self._targets else np.zeros(0, np.int64)
