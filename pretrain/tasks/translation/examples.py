"""Sentences of the validation set are translated greedily while a model trains, and scored by BLEU and chrF.

There is no cache: every pass reads all that was said so far, and sources anew, of the sentences that have not ended. So
the model runs as it does in training, with its pipeline and its divided weights, and no layer has to know of this.

B  samples in a micro-batch, those that have ended left out, S  tokens of the source
T  tokens said so far, the one that begins them included
W  vocabulary rows on this tensor rank
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from data_pipeline.translation.batch import PADDING, PairBatch
from parallel.mesh import Axis
from parallel.vocab import vocabulary_parallel_argmax
from pretrain.tasks.examples import Example, Examples, Inputs, Passes
from pretrain.tasks.translation.scores import scores
from pretrain.tasks.translation.text import PairCodec

TIMES_SOURCE, MORE = 2, 10
"""A translation has at most so many times the tokens of its source and so many more, its end included: young models
never end by themselves."""


class Translations(Examples[PairBatch]):
    """It takes the likeliest next token until that is the end of text."""

    def __init__(self, codec: PairCodec, vocabulary: int, longest: int, tensor: Axis) -> None:
        """`vocabulary` is the size of the real one of the target, `longest` the most tokens that a translation may
        have."""
        self._codec, self._vocabulary, self._longest, self._tensor = codec, vocabulary, longest, tensor
        signatures = "; ".join(f"{score.name} {score.signature}" for score in scores(["-"], ["-"]))
        self.description = f"translated greedily; sacrebleu's {signatures}"

    def choose(self, outputs: Tensor) -> Tensor:
        """It maps logits (B, T, W) to the likeliest token behind the last one, (B,)."""
        last_B1W = outputs[:, -1:].clone()
        if self._tensor.first:
            last_B1W[..., PADDING] = float(
                "-inf"
            )  # nothing learns to say it, and it would hide the place it has
        tokens_B = vocabulary_parallel_argmax(last_B1W, self._tensor)[:, 0]
        # Of logits that are not finite none is the largest, or all are.
        said_B = (tokens_B != PADDING) & (tokens_B < self._vocabulary)
        return torch.where(said_B, tokens_B, self._codec.end_of_text)

    def passes(self, batches: Sequence[PairBatch]) -> Passes:
        """Every pass says one more token of all translations that have not ended."""
        begun = [_Begun(batch, self._codec.end_of_text, self._longest) for batch in batches]
        while True:
            tokens = yield [one.inputs for one in begun]
            for one, tokens_B in zip(begun, tokens, strict=True):
                one.add(tokens_B)
            if all(one.ended for one in begun):
                return [example for one in begun for example in one.examples(self._codec)]

    def metrics(self, examples: Sequence[Example]) -> Mapping[str, float]:
        """They are BLEU and chrF of all of them as one corpus."""
        found = scores([one.prediction for one in examples], [one.reference for one in examples])
        return {score.name: score.value for score in found}


class _Begun:
    """It is the translations of a micro-batch as far as they are said; those that have ended take part in no more
    passes."""

    def __init__(self, batch: PairBatch, end_of_text: int, longest: int) -> None:
        self._batch, self._end_of_text = batch, end_of_text
        self._said: list[list[int]] = batch.inputs_BT[:, :1].tolist()
        most_B = (TIMES_SOURCE * (batch.source_BS != PADDING).sum(1) + MORE).clamp(max=longest)
        self._most: list[int] = most_B.tolist()
        self._going = [row for row, said in enumerate(self._said) if said != [PADDING]]

    @property
    def inputs(self) -> Inputs:
        """What has ended goes along with one row, for ranks that need others to be there."""
        rows = self._going or [0]
        return self._batch.source_BS[rows], torch.tensor([self._said[row] for row in rows])

    @property
    def ended(self) -> bool:
        return not self._going

    def add(self, tokens_B: Tensor) -> None:
        """It takes in the next token of each row of `inputs`."""
        for row, token in zip(self._going, tokens_B.tolist(), strict=False):
            self._said[row].append(token)
        self._going = [row for row in self._going if self._goes_on(self._said[row], self._most[row])]

    def _goes_on(self, said: list[int], most: int) -> bool:
        """Behind what begins it, a translation has one token less than the most before its end."""
        return said[-1] != self._end_of_text and len(said) < most

    def examples(self, codec: PairCodec) -> Iterator[Example | None]:
        """It yields one for each row."""
        sources, references = self._batch.source_BS.tolist(), self._batch.targets_BT.tolist()
        for source, reference, said in zip(sources, references, self._said, strict=True):
            if said == [PADDING]:
                yield None
            else:
                yield Example(codec.decode_source(source), codec.decode(reference), codec.decode(said[1:]))
