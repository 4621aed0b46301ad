"""Translations are compared with references by BLEU and chrF, as sacrebleu computes them of plain text.

BLEU is that of Papineni et al. 2002 (https://aclanthology.org/P02-1040) with sacrebleu's own tokenization (Post 2018,
https://aclanthology.org/W18-6319), chrF that of Popovic 2015 (https://aclanthology.org/W15-3049), both of a whole
corpus, from 0 to 100. Both take text as people read it: no tokens, no lower case.
"""

from collections.abc import Sequence

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from pretrain.tasks.scores import Score


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Score, ...]:
    """It returns BLEU and chrF of a corpus, with one reference for each hypothesis.

    Raises ValueError where there is none, or not one for each.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} references")
    # Forced, it keeps from the log what it thinks of text that looks tokenized; it scores that all the same.
    metrics = {"bleu": BLEU(force=True), "chrf": CHRF()}
    return tuple(_scored(name, metric, hypotheses, references) for name, metric in metrics.items())


def _scored(name: str, metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    found = metric.corpus_score(hypotheses, [references])
    signature = str(metric.get_signature())
    return Score(name, found.score, signature, found.format(signature=signature))
