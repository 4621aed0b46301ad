"""Targets of pairs are counted here in bytes and words of the text that they spell."""

from data_pipeline.source import Baseline, TargetMeasure
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.measure import TextMeasure
from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.translation.batch import PairBatch


class PairMeasure(TargetMeasure[PairBatch]):
    """It counts them as those of text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = TextMeasure(tokenizer)

    def add(self, batch: PairBatch) -> None:
        """It takes in the targets of weight 1."""
        self._text.add(TokenBatch(batch.inputs_BT, batch.targets_BT, batch.weights_BT))

    def totals(self) -> dict[str, int]:
        """It returns the bytes and words so far."""
        return self._text.totals()

    def baseline(self) -> Baseline:
        """It returns the loss of a model that knows how frequent each token is among these, and nothing else."""
        return self._text.baseline()
