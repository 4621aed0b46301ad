"""A plan names a fault, planted in a run to see what the watchdog does, and says when it happens."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config.keys import nearest
from pretrain.errors import ConfigurationError
from pretrain.models.outline import Outline

_PATTERN = re.compile(r"(\w+)(?:@(\d{1,9})(?:\+(\d{1,9}))?)?")

TABLE, ATTENTION = "table of embeddings", "attention"


@dataclass(frozen=True)
class FaultKind:
    """It says what is done, and for how many steps where a plan does not say."""

    description: str
    steps: int = 1
    needs: str = ""
    """What of a model it strikes, `TABLE` or `ATTENTION`; empty: any model will do."""
    drift: bool = False
    """It shows as a drift alone, which takes a baseline to be seen."""


FAULTS: Mapping[str, FaultKind] = {
    "poisoned_samples": FaultKind("targets of all samples of some steps are shuffled", 40, drift=True),
    "garbage_batch": FaultKind("one global batch has random inputs", drift=True),
    "nan_gradient": FaultKind("a gradient of the last rank is NaN"),
    "infinite_loss": FaultKind("the loss of one rank of the last stage is infinite"),
    "high_learning_rate": FaultKind("the learning rate is 20 times what it should be", 40, drift=True),
    "exponent_flip": FaultKind(
        "the highest exponent bit of one embedding weight flips in one replica", needs=TABLE
    ),
    "replica_flip": FaultKind("a middle bit of one embedding weight flips in one replica", needs=TABLE),
    "tev_drift": FaultKind(
        "every step adds 0.2 % of a common vector to all rows of the embedding", 100, TABLE, drift=True
    ),
    "exploding_logits": FaultKind("query weights of one block grow 30 times", needs=ATTENTION, drift=True),
}


@dataclass(frozen=True)
class FaultPlan:
    """It names a fault and says when it happens."""

    name: str
    """One of `FAULTS`."""
    step: int
    """The first step that has it, from 1."""
    steps: int
    """How many have it."""

    def __str__(self) -> str:
        return f"{self.name}@{self.step}+{self.steps}"

    def covers(self, step: int) -> bool:
        """It says whether a step has the fault."""
        return self.step <= step < self.step + self.steps

    def check(self, outline: Outline) -> None:
        """It raises ConfigurationError where the model has nothing that the fault could strike."""
        there = {
            "": True,
            TABLE: bool(outline.watched_tables),
            ATTENTION: any(outline.layers[index].attentions for index in outline.blocks),
        }
        if not there[lack := FAULTS[self.name].needs]:
            others = ", ".join(name for name, kind in FAULTS.items() if there[kind.needs])
            raise ConfigurationError(f"--fault {self}: this model has no {lack}; it can have {others}")

    @classmethod
    def parse(cls, text: str, total_steps: int) -> "FaultPlan":
        """Read `NAME[@STEP[+STEPS]]`; without STEP it is right after two thirds of the run's `total_steps`.

        Raises ConfigurationError.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"--fault {text}: not of the form NAME[@STEP[+STEPS]]")
        name, step, steps = match.groups()
        if name not in FAULTS:
            known = " or ".join(nearest(name, FAULTS)) or f"one of {', '.join(FAULTS)}"
            raise ConfigurationError(f"--fault {text}: there is no fault {name}; did you mean {known}?")
        plan = cls(name, int(step or total_steps * 2 // 3 + 1), int(steps or FAULTS[name].steps))
        if not (1 <= plan.step <= total_steps and plan.steps > 0):
            raise ConfigurationError(f"--fault {text}: steps of the run are 1 to {total_steps} (run.steps)")
        return plan
