"""Checkpoints are named by tags."""

import re
from dataclasses import dataclass

from data_pipeline.shown import shown
from pretrain.errors import ConfigurationError

# At least eight digits and no superfluous zero: a tag has exactly one spelling.
_PATTERN = re.compile(r"step(\d{8}|[1-9]\d{8,17})-a([1-9]\d{0,8})", re.ASCII)


@dataclass(frozen=True, order=True)
class Tag:
    """It names one attempt to save a checkpoint, for example `step00001200-a3`.

    Attempts are counted through the whole run, so a name is never used twice and order by attempt is order by
    age: after a return to an earlier step, newer checkpoints have smaller steps than those left behind.
    """

    attempt: int
    step: int

    def __str__(self) -> str:
        return f"step{self.step:08d}-a{self.attempt}"

    @classmethod
    def parse(cls, name: str) -> "Tag | None":
        """It returns the tag with exactly this name; None if it is not one."""
        match = _PATTERN.fullmatch(name)
        return cls(step=int(match[1]), attempt=int(match[2])) if match else None


def requested(name: str) -> str:
    """It returns the name of the checkpoint that `--resume` asks for.

    Raises ConfigurationError for what is no such name: no path, no link and no `latest` is followed.
    """
    if Tag.parse(name) is None:
        raise ConfigurationError(
            f"--resume {shown(name)}: not the name of a checkpoint, such as step00001200-a3; "
            "`surefoot inspect RUN` lists them"
        )
    return name
