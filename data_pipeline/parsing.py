"""What comes from outside is read and parsed behind one boundary: whatever it provokes becomes its format's error.

    with parsed_as(DataError, path):
        manifest = Manifest.model_validate(parse_json(read_whole(path)))

No list of exceptions is ever whole: a number of a million digits, a thousand brackets, half a surrogate pair and a
shape of 10^30 rows each raise something else, in the library that happens to meet them first.
"""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import StringConstraints, ValidationError

from data_pipeline.files import open_regular
from data_pipeline.shown import masked, shown

LARGEST_DOCUMENT = 64 * 2**20
"""Bytes of the largest file that is parsed as a whole; a manifest of 200,000 shards is about as large."""

LARGEST_INTEGER = 2**64
"""Magnitude that no number of ours reaches."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256. Files are cached under it, so it must be nothing else."""


@contextmanager
def parsed_as(refusal: type[Exception], name: object) -> Iterator[None]:
    """It turns whatever the block raises about content from outside into `refusal`, which names it.

    Raises OSError and `refusal` as they are.
    """
    try:
        yield
    except (OSError, refusal):
        raise
    except Exception as error:
        raise refusal(f"{shown(masked(name))}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """It returns in one line what an error says of content; its kind where it says nothing."""
    match error:
        case ValidationError():
            fault = error.errors(include_url=False, include_input=False)[0]
            place, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
            return shown(f"{place}: {message}" if place else message)
        case RecursionError():
            return "nested too deeply"
        case MemoryError():
            return "asks for more memory than there is"
        case KeyError():
            return f"{shown(error.args[0] if error.args else '')} is missing"
    return shown(masked(error)) or type(error).__name__


def read_whole(path: Path, limit: int = LARGEST_DOCUMENT, *, follow: bool = True) -> bytes:
    """It returns what a regular file holds, or with `follow` a link to one. Raises OSError, also for one of more than
    `limit` bytes."""
    with open_regular(path, follow=follow) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes, as no sound one is", str(path))
    return content


def parse_json(text: bytes | str) -> Any:
    """It parses the JSON of RFC 8259 in UTF-8; strings may hold halves of surrogate pairs, as escapes can spell them.

    Raises ValueError for all else that Python's parser would let pass or trip over: a name that stands twice, NaN and
    Infinity, numbers beyond the range of ours, nesting without end.
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_small_enough,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError as error:
        raise ValueError(reason(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{shown(name)} stands there more than once")
        content[name] = value
    return content


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if abs(number) == float("inf"):
        raise ValueError(f"{shown(digits)} is beyond the largest number")
    return number


def _small_enough(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST_INTEGER < (number := int(digits)) < LARGEST_INTEGER:
        raise ValueError(f"{shown(digits[:24])}... is beyond the largest number")
    return number
