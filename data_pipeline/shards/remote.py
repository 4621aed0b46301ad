"""What a server says is told here as it is, and asked again where it may pass."""

import errno
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec

from data_pipeline.errors import DataError
from data_pipeline.parsing import reason
from data_pipeline.shown import masked, shown

try:
    import aiohttp
except ImportError:  # HTTP is an extra; fsspec says so where it is needed
    aiohttp = None  # type: ignore[assignment]

WAITS = (1.0, 2.0, 4.0)
"""Seconds between attempts."""

CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 30.0
"""A server that says nothing for so long is given up; how long it takes for all is nobody's business."""

MISSING = (404, 410)
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP status codes of what may pass."""

LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE)
"""Error numbers of this machine's own trouble."""

Result = TypeVar("Result")


class RemoteMissing(DataError):
    """There is nothing at a URL."""


class RemoteBusy(DataError):
    """A server cannot be reached or cannot answer now."""


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """It turns whatever an fsspec protocol raises about `url` into a DataError that says what the server said."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # fsspec takes every failure of a first look at a file for a file that is missing, and keeps the cause.
        said = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        raise _told(shown(masked(url)), said) from error


def retried(action: Callable[[], Result]) -> Result:
    """It returns what `action` does, which is tried again, after a while, for what may pass.

    Raises DataError.
    """
    for wait in WAITS:
        try:
            return action()
        except RemoteBusy:
            time.sleep(wait)
    try:
        return action()
    except RemoteBusy as error:
        raise RemoteBusy(f"{error} (tried {len(WAITS) + 1} times)") from error


def filesystem_options(url: str) -> dict[str, Any]:
    """It returns what fsspec is to be told for a URL: how long it waits for a web server, that it uses a proxy of the
    environment, and that files are read from front to back. (It would ask for blocks of 5 MiB, which many servers do
    not have, that of Python among them.) What the user has told fsspec comes first."""
    if aiohttp is None or not url.startswith(("http://", "https://")):
        return {}
    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    own = {name: value for table in ("http", "https") for name, value in _configured(table).items()}
    return {"block_size": 0, "client_kwargs": {"timeout": limits, "trust_env": True, **own}}


def _configured(protocol: str) -> Mapping[str, Any]:
    """It returns what fsspec's configuration has for aiohttp; fsspec itself would put ours in its place, as a whole."""
    own = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
    return own if isinstance(own, Mapping) else {}


def _told(place: str, error: BaseException) -> DataError:
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in MISSING:
        return RemoteMissing(f"{place}: is missing")
    if isinstance(status, int) and status >= 400:
        kind = RemoteBusy if status in PASSING else DataError
        return kind(f"{place}: the server answered {status} {shown(getattr(error, 'message', ''))}".rstrip())
    if isinstance(error, TimeoutError):
        return RemoteBusy(f"{place}: no answer in time")
    kind = RemoteBusy if _passes(error) else DataError
    return kind(f"{place}: cannot be read: {reason(error)}")


def _passes(error: BaseException) -> bool:
    """It tells whether an error is of the network, and not of certificates, permissions or this machine."""
    if isinstance(error, ssl.SSLError | PermissionError):
        return False
    if isinstance(error, OSError):
        return error.errno not in LOCAL
    return aiohttp is not None and isinstance(
        error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError
    )
