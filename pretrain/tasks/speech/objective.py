"""Models of speech minimise CTC's loss, and validation counts their errors.

B  utterances in a micro-batch, U  units of the longest transcript
T  outputs, V  units that the model tells apart
"""

from collections.abc import Sequence
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.speech.batch import BLANK
from pretrain.tasks.speech.alignment import collapsed
from pretrain.tasks.speech.config import output_frames
from pretrain.tasks.task import Metric


class CTC:
    """Connectionist temporal classification (Graves et al. 2006): the weighted sum of the negative log-likelihood of
    each transcript, in nats, over all alignments of its units with the outputs.

    Logarithms are taken over the whole vocabulary, in fp32 at least. Infinite where a transcript has more units, and
    blanks between equal ones, than there are outputs; prepared data has none such.
    """

    def __init__(self, stride: int) -> None:
        """`stride` counts the frames of an output."""
        self._stride = stride

    def __call__(self, logits_BTV: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        """It returns a scalar; the caller scales the weights into a mean over units."""
        units_BU, lengths_B, frames_B, weights_B = labels
        dtype = torch.promote_types(logits_BTV.dtype, torch.float32)
        logs_BTV = F.log_softmax(logits_BTV, dim=-1, dtype=dtype)
        outputs_B = output_frames(frames_B, self._stride)
        losses_B = F.ctc_loss(
            logs_BTV.transpose(0, 1), units_BU, outputs_B, lengths_B, blank=BLANK, reduction="none"
        )
        return (losses_B * weights_B).sum()


class UnitErrorRate(Metric):
    """The edit distance between what is likeliest at every output, blanks and repeats left out, and the transcript,
    relative to the units of all transcripts: of characters it is the character error rate."""

    name = "unit_error_rate"

    def __init__(self, stride: int) -> None:
        self._stride = stride

    def sums(self, outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        """Edits, and units that count."""
        units_BU, lengths_B, frames_B, weights_B = labels
        likeliest_BT = outputs.argmax(dim=-1)
        ends = output_frames(frames_B, self._stride).tolist(), lengths_B.tolist()
        rows = zip(likeliest_BT.tolist(), units_BU.tolist(), *ends, (weights_B > 0).tolist(), strict=True)
        edits = units = 0
        for said, transcript, outputs_of, length, counts in rows:
            if counts:
                heard = [span.unit for span in collapsed(said[:outputs_of])]
                edits += Levenshtein.distance(heard, transcript[:length])
                units += length
        return torch.tensor([edits, units], dtype=torch.float64)

    def value(self, sums: Sequence[float], loss: float) -> float:
        """Edits over units."""
        edits, units = sums
        return edits / units
