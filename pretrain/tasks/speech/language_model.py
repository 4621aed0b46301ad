"""Language models of words are n-grams, read and asked by kenlm, where that is installed."""

import math
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.files import open_regular
from data_pipeline.shown import shown
from pretrain.errors import ConfigurationError
from pretrain.runtime.libraries import find_library

KENLM = find_library("kenlm", "kenlm")
if KENLM.usable:
    import kenlm


class NGrams:
    """It is an n-gram model of words for `Fusion` (kenlm: Heafield 2011, https://aclanthology.org/W11-2123).

    A word that it does not know has the probability of its `<unk>`.
    """

    def __init__(self, path: Path) -> None:
        """`path` is that of an ARPA file, also compressed with gzip, or of a binary file of kenlm's.

        Raises ConfigurationError where kenlm is missing, and DataError for what is no such file.
        """
        if not KENLM.usable:
            raise ConfigurationError(
                f"language model {shown(path)}: kenlm, which reads it, is {KENLM.description}; pip install kenlm"
            )
        config = kenlm.Config()
        config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
        try:
            open_regular(path, follow=True).close()  # kenlm would wait for what comes through a pipe
            self._model = kenlm.Model(str(path), config)
        except (
            OSError
        ) as error:  # of kenlm 0.3.0 for all that is wrong with the content, with names of its own sources
            why = error.strerror or str(error).rpartition(" threw ")[2].removesuffix(")")
            raise DataError(f"language model {shown(path)}: {shown(why)}") from error

    def begin(self) -> Any:
        """It returns the state at the beginning of a sentence."""
        state = kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def word(self, state: Any, word: str) -> tuple[Any, float]:
        """It returns the state behind a word, and the log-probability of the word in nats."""
        behind = kenlm.State()
        return behind, self._model.BaseScore(state, word, behind) * math.log(10)

    def end(self, state: Any) -> float:
        """It returns the log-probability of the end of the sentence in nats."""
        return self.word(state, "</s>")[1]
