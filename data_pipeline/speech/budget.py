"""What is left out is counted here by reason, up to a budget: much more is a fault of the corpus, and no outliers."""

from collections import Counter

from data_pipeline.errors import DataError
from data_pipeline.preparing.source_files import LeftOut
from data_pipeline.shown import shown
from data_pipeline.text.splits import Split


class Budget:
    """It takes in what is left out of so many utterances."""

    def __init__(self, share: float, utterances: int) -> None:
        self._share = share
        self._utterances = utterances
        self.left_out: list[LeftOut] = []
        self._reasons: dict[Split, Counter[str]] = {}

    def leave_out(self, split: Split, entry: LeftOut) -> None:
        """It notes an utterance. Raises DataError where that are more than the budget has."""
        self.left_out.append(entry)
        self._reasons.setdefault(split, Counter())[entry.reason] += 1
        if len(self.left_out) > self._share * self._utterances:
            raise DataError(
                f"{len(self.left_out):,} of {self._utterances:,} utterances cannot be used so far, more than "
                f"--left-out-budget {self._share:g} allows: {self._examples()}; mend the corpus, or raise the budget "
                "to have them left out"
            )

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """They are by split and reason."""
        return {split: dict(reasons) for split, reasons in self._reasons.items()}

    def in_words(self, split: Split) -> str:
        """It says what was left out of a split, if anything was."""
        reasons = self.counts.get(split, {})
        listed = ", ".join(f"{count:,} left out: {reason}" for reason, count in reasons.items())
        return f" ({listed})" if listed else ""

    def _examples(self) -> str:
        first = {entry.reason: entry.name for entry in reversed(self.left_out)}
        counts = Counter(entry.reason for entry in self.left_out)
        return "; ".join(
            f"{count:,} {reason} (first {shown(first[reason])})" for reason, count in counts.items()
        )
