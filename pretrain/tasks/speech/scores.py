"""Transcripts are compared with references by word and character error rates, as jiwer counts them.

An error rate is (substitutions + deletions + insertions) / (words of the references) of a whole corpus, with as few
errors as can be. Of an empty reference all words are insertions. White space separates words and is of no account
beyond that: between characters every gap is one space. Nothing else is made equal, neither case nor punctuation.
"""

import math
from collections.abc import Iterator, Sequence

import jiwer

from pretrain.runtime.libraries import installed_version
from pretrain.tasks.scores import Score

SIGNATURE = f"case:mixed|punctuation:kept|space:single|version:jiwer-{installed_version('jiwer')}"


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Score, ...]:
    """It returns the error rates of words (`wer`) and characters (`cer`) of a corpus, 0.05 for 5 %; infinite where the
    references are all empty and something is said.

    Raises ValueError where there is no reference, or not one for each hypothesis.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} references")
    said, right = [*map(spaced, hypotheses)], [*map(spaced, references)]
    return (
        error_rate("wer", jiwer.process_words(right, said)),
        error_rate("cer", jiwer.process_characters(right, said)),
    )


def error_rate(name: str, counted: jiwer.WordOutput | jiwer.CharacterOutput) -> Score:
    """It returns a score with its counts; its line is as Kaldi prints it."""
    errors = {
        "insertions": counted.insertions,
        "deletions": counted.deletions,
        "substitutions": counted.substitutions,
    }
    wrong, length = sum(errors.values()), counted.hits + counted.deletions + counted.substitutions
    # jiwer 4.0.0 would say the number of insertions where there is nothing to divide by.
    value = wrong / length if length else math.inf if wrong else 0.0
    listed = ", ".join(f"{count} {kind[:3]}" for kind, count in errors.items())
    line = f"%{name.upper()} {100 * value:.2f} [ {wrong} / {length}, {listed} ] {SIGNATURE}"
    return Score(name, value, SIGNATURE, line, {"hits": counted.hits, **errors})


def alignment(name: str, hypothesis: str, reference: str) -> str:
    """It returns reference and hypothesis word below word, as sclite does: what is inserted or deleted stands against
    asterisks, and errors are marked S, D and I."""
    counted = jiwer.process_words(spaced(reference), spaced(hypothesis))
    columns = [*_columns(counted)]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(("REF: ", "HYP: ", "Eval:"), zip(*columns, strict=True), strict=True) if columns else ()
    marks = f"{counted.hits} {counted.substitutions} {counted.deletions} {counted.insertions}"
    lines = [f"id: ({name})", f"Scores: (#C #S #D #I) {marks}"]
    for title, words in rows:
        padded = (word.ljust(width) for word, width in zip(words, widths, strict=True))
        lines.append(f"{title} {' '.join(padded)}".rstrip())
    return "".join(f"{line}\n" for line in [*lines, ""])


def spaced(text: str) -> str:
    """It returns a text with single spaces between its words alone."""
    return " ".join(text.split())


def _columns(counted: jiwer.WordOutput) -> Iterator[tuple[str, str, str]]:
    """It yields word of the reference, word of the hypothesis, and mark."""
    (reference,), (hypothesis,), (chunks,) = counted.references, counted.hypotheses, counted.alignments
    for chunk in chunks:
        right = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        said = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        mark = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}[chunk.type]
        for place in range(max(len(right), len(said))):
            yield (
                right[place] if right else "*" * len(said[place]),
                said[place] if said else "*" * len(right[place]),
                mark,
            )
