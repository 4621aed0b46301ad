"""Steps that are to be profiled are read from the command line."""

import re
from dataclasses import dataclass

from pretrain.errors import ConfigurationError

_PATTERN = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?")


@dataclass(frozen=True)
class ProfiledSteps:
    """It names the steps of a run that are profiled, by their numbers."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}" if self.last > self.first else str(self.first)

    def __len__(self) -> int:
        return self.last - self.first + 1

    @classmethod
    def parse(cls, text: str, total_steps: int) -> "ProfiledSteps":
        """Read `FIRST` or `FIRST-LAST`, of a run of `total_steps`. Raises ConfigurationError."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"--profile {text}: is no step, such as 20, and no steps, such as 20-22")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= total_steps:
            raise ConfigurationError(
                f"--profile {text}: must be steps of the run in their order, from 1 to {total_steps} (run.steps)"
            )
        return cls(first, last)
