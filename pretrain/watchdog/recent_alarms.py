"""It remembers which signals have lately alarmed, for the rules that ask for two of them within some steps."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pretrain.step import Alarm

PAIR_WINDOW = 64
"""Steps within which two signals count as seen together."""

DRIFTS = ("high", "low")
"""Kinds of alarms that built up over steps."""

FAMILIES = ("loss", "tev", "attention_entropy", "gradient_norm", "gradient_variance", "update_rms")
"""Signals of one family say the same thing twice: `tev_mean` and `tev_max` are no two witnesses."""


def family(signal: str) -> str:
    """It returns the family of a signal, by the beginning of its name; a signal of none is its own."""
    return next(
        (name for name in FAMILIES if signal == name or signal.startswith((f"{name}_", f"{name}/"))), signal
    )


@dataclass(frozen=True)
class Sighting:
    """A sighting is the last time that a family was seen drifting."""

    step: int
    alarm: Alarm
    certain: bool
    """An alarm; else a suspicion."""


@dataclass(frozen=True)
class RecentAlarms:
    """They are the drifts of the last `PAIR_WINDOW` steps: one alarm and one suspicion of each family at most.

    They are part of the state of the run: they go into checkpoints, and back with them.
    """

    sightings: tuple[Sighting, ...] = ()

    def after(self, step: int, alarms: Iterable[Alarm], suspects: Iterable[Alarm]) -> "RecentAlarms":
        """It returns the drifts that are remembered once `step` was looked at, which has raised these."""
        seen = [Sighting(step, alarm, True) for alarm in alarms if alarm.kind in DRIFTS]
        seen += [Sighting(step, alarm, False) for alarm in suspects if alarm.kind in DRIFTS]
        kept = [sighting for sighting in self.sightings if step - sighting.step < PAIR_WINDOW]
        latest = {(family(sighting.alarm.signal), sighting.certain): sighting for sighting in kept + seen}
        return RecentAlarms(tuple(latest.values()))

    def families(self, *, certain: bool) -> frozenset[str]:
        """It returns the families that have alarmed, or with `certain=False` that have been suspected."""
        return frozenset(family(s.alarm.signal) for s in self.sightings if s.certain is certain)

    def state_dict(self) -> list[dict[str, Any]]:
        """It returns what goes into checkpoints, JSON-able."""
        return [asdict(sighting) for sighting in self.sightings]

    @classmethod
    def from_state_dict(cls, state: Iterable[Mapping[str, Any]]) -> "RecentAlarms":
        return cls(tuple(Sighting(**{**entry, "alarm": Alarm(**entry["alarm"])}) for entry in state))
