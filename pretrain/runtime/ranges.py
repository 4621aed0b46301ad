"""The parts of a step have names, by which a profile tells what each of them takes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch.autograd import profiler
from torch.profiler import record_function

RANGE = "surefoot/"
"""Names of ranges begin so, among those of others."""

Part = Literal[
    "step", "data", "forward", "backward", "stages", "reduction", "methods", "probes", "judge", "update"
]
"""`step` is all of it; `stages` is what a pipeline hands on and waits for."""


def ranged(part: Part) -> AbstractContextManager[Any]:
    """Within it a profiler counts what happens to a part of the step. Where none runs, nothing is recorded."""
    return record_function(RANGE + part) if profiler._is_profiler_enabled else nullcontext()


def ranging(part: Part, call: Callable[..., Any]) -> Callable[..., Any]:
    """It returns a call that is a part of the step."""

    def within(*arguments: Any, **options: Any) -> Any:
        with ranged(part):
            return call(*arguments, **options)

    return within
