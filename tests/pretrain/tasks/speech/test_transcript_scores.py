"""Error rates by hand, and references and hypotheses word below word."""

import math

import jiwer
import pytest

from pretrain.tasks.speech.scores import alignment, scores

REFERENCES = ["one two three", "four five", "six"]
HYPOTHESES = ["one too three four", "five", "six"]


def test_errors_of_a_corpus_are_counted_together() -> None:
    words, characters = scores(HYPOTHESES, REFERENCES)
    assert words.name == "wer"
    assert words.value == 3 / 6, "not the mean over utterances, which were 2/3, 1/2 and 0"
    assert words.counts == {"hits": 4, "insertions": 1, "deletions": 1, "substitutions": 1}
    assert words.line.startswith("%WER 50.00 [ 3 / 6, 1 ins, 1 del, 1 sub ] case:mixed|")
    assert characters.name == "cer"
    # "two" -> "too" is one, " four" five, and "four " five more of the other one.
    assert characters.value == 11 / (13 + 9 + 3)
    assert characters.counts == {"hits": 19, "insertions": 5, "deletions": 5, "substitutions": 1}
    assert characters.value == jiwer.cer(REFERENCES, HYPOTHESES)
    assert "jiwer-4" in words.signature


def test_empty_references_have_insertions_alone() -> None:
    """jiwer by itself would not divide."""
    words, _ = scores(["a b", "one"], ["", "one two"])
    assert words.value == 3 / 2
    assert words.counts == {"hits": 1, "insertions": 2, "deletions": 1, "substitutions": 0}
    assert scores(["a b"], [""])[0].value == math.inf
    assert scores([""], [""])[0].value == 0
    assert scores(["", ""], ["a b", ""])[0].value == 1


def test_white_space_alone_is_no_error_and_nothing_else_is_forgiven() -> None:
    assert [score.value for score in scores([" one\ttwo\n"], ["one  two"])] == [0, 0]
    assert scores(["One two."], ["one two"])[0].value == 1


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], [])])
def test_scores_of_nothing_are_refused(hypotheses: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{len(hypotheses)} hypotheses, 0 references"):
        scores(hypotheses, references)


def test_words_stand_below_words() -> None:
    assert alignment("digits-7", "one too three four", "zero one two three") == (
        "id: (digits-7)\n"
        "Scores: (#C #S #D #I) 2 1 1 1\n"
        "REF:  zero one two three ****\n"
        "HYP:  **** one too three four\n"
        "Eval: D        S         I\n"
        "\n"
    )
    assert alignment("a", "", "one") == (
        "id: (a)\nScores: (#C #S #D #I) 0 0 1 0\nREF:  one\nHYP:  ***\nEval: D\n\n"
    )
    assert alignment("a", "", "") == "id: (a)\nScores: (#C #S #D #I) 0 0 0 0\n\n"
