"""Utterances of the validation set are transcribed greedily while a model trains, and scored by error rates.

A model that is trained by CTC says all at once, so this takes one pass, as its loss does.

B  utterances in a micro-batch, T  outputs of the longest, V  units that the model tells apart
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.units import Units
from pretrain.tasks.examples import Example, Examples, Passes
from pretrain.tasks.speech.alignment import collapsed
from pretrain.tasks.speech.config import output_frames
from pretrain.tasks.speech.scores import SIGNATURE, scores


class Transcriptions(Examples[SpeechBatch]):
    """It takes the likeliest alignment."""

    description = f"transcribed greedily; error rates of words (wer) and characters (cer) {SIGNATURE}"

    def __init__(self, data: SpeechConfig, stride: int, units: Units) -> None:
        """`stride` counts the frames of an output."""
        self._stride, self._units = stride, units
        self._frame_seconds = data.hop / data.sample_rate

    def choose(self, outputs: Tensor) -> Tensor:
        """It maps logits (B, T, V) to the likeliest id of each output (B, T), those of padding included."""
        return outputs.argmax(dim=-1)

    def passes(self, batches: Sequence[SpeechBatch]) -> Passes:
        """It is one pass."""
        chosen = yield [batch.inputs for batch in batches]
        return [
            example
            for batch, ids_BT in zip(batches, chosen, strict=True)
            for example in self._examples(batch, ids_BT)
        ]

    def metrics(self, examples: Sequence[Example]) -> Mapping[str, float]:
        """They are the error rates of all of them as one corpus."""
        found = scores([one.prediction for one in examples], [one.reference for one in examples])
        return {score.name: score.value for score in found}

    def _examples(self, batch: SpeechBatch, ids_BT: Tensor) -> Iterator[Example | None]:
        """It yields one for each row."""
        ends_B = output_frames(batch.frames_B, self._stride)
        columns = (batch.units_BU, batch.lengths_B, batch.frames_B, batch.weights_B, ids_BT, ends_B)
        for units, length, frames, weight, ids, end in zip(*(c.tolist() for c in columns), strict=True):
            if not weight:
                yield None
                continue
            said = [span.unit for span in collapsed(ids[:end])]
            yield Example(
                f"{frames * self._frame_seconds:.2f} seconds",
                self._units.decode(units[:length]),
                self._units.decode(said),
            )
