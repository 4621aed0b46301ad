"""Text from outside is made harmless before it is shown: names, messages of servers, samples, host output.

Whatever is in it, it cannot move the cursor, colour or clear a terminal, turn the direction of reading, hide
itself, begin a line of its own, or fail to be encoded.
"""

import argparse
import io
import re
import sys
from typing import NoReturn
from unicodedata import category

LONGEST = 4096
"""Characters of one text that are shown: those of the longest path."""

_USER = re.compile(
    r"(?<=://)(?:[^\s/?#]*|[^\s/?#:]*:(?!\d+[/?#])\S*|[^/?#:@\"']*:(?=\S)(?!\d+[/?#:,\s])(?:(?!://).)*)@",
    re.DOTALL,
)
"""User and password of a URL; they may hold slashes and blanks that should have been quoted, the port may not."""

_QUERY = re.compile(r"(?<=://)([^\s?#\"'<>]*)([?#][^\s\"'<>]*)")
_VALUE = re.compile(r"(?<==)[^&;]+|(?<=\?)[^&;=]+(?=[&;#]|$)")


def shown(text: object) -> str:
    """It returns `str(text)` as one line to be shown, cut where it is longer than any name.

    Line breaks, control, bidirectional, zero-width and other format characters, private ones and halves of
    surrogate pairs become escapes as in Python, such as `\\x1b` and `\\u202e`; letters of any script stay.
    """
    whole = str(text)
    line = "".join(map(_visible, whole[:LONGEST]))
    return line if len(whole) <= LONGEST else f"{line}... ({len(whole)} characters)"


def shown_lines(text: object) -> str:
    """It returns `str(text)` to be shown where line breaks and tabs are meant; everything else is as in `shown`."""
    return "".join(char if char in "\n\t" else _visible(char) for char in str(text))


def show_anything() -> None:
    """It has standard output and standard error spell out what their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class CommandLine(argparse.ArgumentParser):
    """It parses a command line; what it says of words that it refuses is made harmless, too."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(masked(message)))


def masked(text: object) -> str:
    """It returns `str(text)` without what opens a door: of every URL in it users, passwords and values of the query.

    The names of parameters stay. Their values go whatever they are called: every service has its own
    (`token`, `sig`, `X-Amz-Signature`), and a list of them is never whole.
    """
    return _QUERY.sub(lambda url: url[1] + _VALUE.sub("***", url[2]), _USER.sub("***@", str(text)))


def _visible(char: str) -> str:
    """It returns the character, or its escape where it is none that is seen."""
    if char.isprintable() or category(char) == "Zs":
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
