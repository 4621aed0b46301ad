"""Some packages hand functions of theirs to `torch.compile` where they define them, and by that alone import inductor
and sympy: a quarter of all that a rank imports before it can start (torch 2.13).

They are imported within `uncompiled()` where none of these functions is used here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within it, `torch.compile` returns functions as they are."""

    def unchanged(function: Any = None, **_: Any) -> Any:
        return function or (lambda function: function)

    original = torch.compile
    torch.compile = unchanged  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = original
