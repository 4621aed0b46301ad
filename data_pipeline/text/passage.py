"""One text becomes batches as it is, without shards, to be evaluated.

B  samples in a micro-batch
S  targets in a sequence
"""

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

from data_pipeline.text.batch import TokenBatch


def passage_batches(
    ids: Sequence[int], end_of_text: int, sequence_length: int, samples: int
) -> Iterator[TokenBatch]:
    """It yields the tokens of a text as batches of `samples` sequences, each token a target once.

    As in training, the text follows on end-of-text, and sequences know nothing of those before them. Targets behind the
    last token have weight 0.
    """
    size = samples * sequence_length
    stream = torch.tensor([end_of_text, *ids])
    for start in range(0, len(ids), size):
        piece = stream[start : start + size + 1]
        missing = size + 1 - len(piece)
        padded = F.pad(piece, (0, missing))
        weights = F.pad(torch.ones(len(piece) - 1), (0, missing))
        yield TokenBatch(
            padded[:-1].view(samples, -1), padded[1:].view(samples, -1), weights.view(samples, -1)
        )
