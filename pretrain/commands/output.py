"""Commands write text of models to standard output."""

import io
import sys
from collections.abc import Iterable

from data_pipeline.shown import shown_lines


def write(parts: Iterable[str]) -> None:
    """It writes text to standard output as it comes.

    A file or a pipe gets the text itself, in UTF-8. On a terminal line breaks and tabs are meant, all else that would
    control it is spelled out, and the text ends with a line break.
    """
    terminal, last = sys.stdout.isatty(), "\n"
    if not terminal and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="strict")
    try:
        for part in filter(None, parts):
            sys.stdout.write(shown_lines(part) if terminal else part)
            sys.stdout.flush()
            last = part
    finally:
        if terminal and not last.endswith("\n"):
            sys.stdout.write("\n")
