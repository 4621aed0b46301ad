"""A model translates sentences, many at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from pretrain.inference.model import LoadedModel
from pretrain.inference.search import BeamSearch, Hypothesis, Search
from pretrain.tasks.scores import Score, Scoring
from pretrain.tasks.translator import Translator

Item = TypeVar("Item")

NOTHING = Hypothesis([], 0.0, 0.0)
"""It is the translation of an empty line."""


MOST_SEQUENCES = 1024
"""A search goes on with no more at the same time, of however many sentences: each takes memory for its cache."""


@dataclass(frozen=True)
class Batching:
    """It says how sentences are taken together."""

    sentences: int = 64
    """In a batch; fewer where the beam is wide (`MOST_SEQUENCES`)."""
    ahead: int = 16
    """So many batches are read before the first one is translated, so that each has sentences of like lengths."""


class SentenceTranslator:
    """It translates with one model."""

    def __init__(
        self, model: LoadedModel, translator: Translator, search: Search, batching: Batching
    ) -> None:
        self._model, self._translator = model, translator
        self._search, self._batching = search, batching

    def lines(self, lines: Iterable[tuple[str, str]], *, cut: bool) -> Iterator[tuple[str, Hypothesis]]:
        """It yields each line and its translation; an empty one has an empty translation.

        Lines come with their places. `cut` takes of one that is too long what the model was trained for.

        Raises:
            DataError: a line is no text or too long; those before it have been yielded.
            CheckpointError: the model has diverged.
        """
        encoded = ((line, self._source(place, line, cut=cut)) for place, line in lines)
        problem: DataError | None = None
        while problem is None:
            some, problem = until_problem(islice(encoded, self._batching.sentences * self._batching.ahead))
            if not some:
                break
            translated = self.tokens([source for _, source in some])
            yield from zip((line for line, _ in some), translated, strict=True)
        if problem:
            raise problem

    def tokens(self, sources: Sequence[Sequence[int]]) -> list[Hypothesis]:
        """It returns the best translation of each source, given as tokens with its end; an empty line has none.

        Raises CheckpointError where the model has diverged.
        """
        by_length = sorted(filter(sources.__getitem__, range(len(sources))), key=lambda i: len(sources[i]))
        found = [NOTHING] * len(sources)
        size = max(min(self._batching.sentences, MOST_SEQUENCES // self._search.beam), 1)
        for start in range(0, len(by_length), size):
            rows = by_length[start : start + size]
            layers, states = self._translator.read(self._model.layers, [sources[row] for row in rows])
            search = BeamSearch(layers, states, self._translator.ends, self._search, self._model.mesh.tensor)
            for row, hypotheses in zip(rows, search.run(), strict=True):
                found[row] = hypotheses[0]
        return found

    def text(self, hypothesis: Hypothesis) -> str:
        """It returns a translation as one line."""
        return " ".join(self._translator.decode(hypothesis.tokens).splitlines())

    def _source(self, place: str, line: str, *, cut: bool) -> list[int]:
        if not line.strip():
            return []
        tokens, longest = self._translator.encode(line), self._translator.longest_source
        if len(tokens) <= longest:
            return tokens
        if not cut:
            raise DataError(
                f"{place}: has {len(tokens)} tokens, its end included, but the model was trained for {longest}; "
                "split the sentence, or translate its beginning with --cut"
            )
        return [*tokens[: longest - 1], tokens[-1]]


class TranslationScoring(Scoring):
    """It translates the sources of all batches together, so that each goes along with others of its length."""

    def __init__(self, sentences: SentenceTranslator, translator: Translator) -> None:
        self._sentences, self._translator = sentences, translator
        self._pairs: list[tuple[list[int], str]] = []

    def add(self, batch: Batch, outputs: Any) -> None:
        """It notes sources and translations; outputs follow from translations of people, and tell nothing."""
        self._pairs += self._translator.pairs(batch)

    def scores(self) -> Sequence[Score]:
        """It returns those of the model's own translations."""
        hypotheses = self._sentences.tokens([source for source, _ in self._pairs])
        texts = [self._sentences.text(hypothesis) for hypothesis in hypotheses]
        return self._translator.scores(texts, [text for _, text in self._pairs])


def until_problem(items: Iterable[Item]) -> tuple[list[Item], DataError | None]:
    """It returns the items before the first one that raises DataError, and that error; none: there is none."""
    found: list[Item] = []
    try:
        for item in items:
            found.append(item)  # one by one: those before the problem are kept
    except DataError as error:
        return found, error
    return found, None
