"""Prepared data lies in a local folder, or at an fsspec URL whose large files are cached on this machine."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote_to_bytes

import fsspec.core

from data_pipeline.errors import DataError
from data_pipeline.files import create_file, open_own, open_regular, sha256_of, write_all
from data_pipeline.parsing import LARGEST_DOCUMENT, read_whole
from data_pipeline.shards.remote import RemoteBusy, RemoteMissing, filesystem_options, remote_errors, retried
from data_pipeline.shown import masked, shown

COPY_BYTES = 1 << 20


class Folder(Protocol):
    """It holds prepared data. What is missing or unreadable raises DataError with its full name."""

    @property
    def name(self) -> str:
        """It is the path or URL, for messages."""

    def child(self, name: str) -> "Folder":
        """It returns the folder `name` in this one."""

    def parent(self) -> "Folder":
        """It returns the folder above; a root is its own parent."""

    def has(self, name: str) -> bool:
        """It tells whether there is a file or folder `name`."""

    def read(self, name: str) -> bytes:
        """It returns the whole of a small file; one that is not small is refused."""

    def local(self, name: str, size: int, sha256: str) -> Path:
        """It returns a path on this machine with the file of that size and content."""


def open_folder(path: str, cache: Path | None) -> Folder:
    """It opens the folder at a path or URL; `cache` (default: `~/.cache/surefoot`) keeps the files of a remote one."""
    if (local := local_path(path)) is not None:
        return LocalFolder(local)
    return RemoteFolder(path.rstrip("/"), usable_cache(cache))


def local_path(source: str) -> Path | None:
    """It returns the path on this machine that a path or a `file://` URL means; None for another URL.

    Raises DataError for a `file://` URL of another host, or of what can be no path.
    """
    if not source.startswith("file://"):
        return None if "://" in source else Path(source)
    host, slash, path = source.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not slash:
        raise DataError(
            f"{shown(source)}: names another host; on this one it is file:///{shown(host + slash + path)}"
        )
    named = unquote_to_bytes(os.fsencode(slash + path))
    if b"\0" in named:
        raise DataError(f"{shown(source)}: %00 is a NUL character, which no path can hold")
    return Path(os.fsdecode(named))


def usable_cache(wanted: Path | None) -> Path:
    """It returns the folder for files of remote data, by default in the user's home.

    Raises:
        DataError: there is no home, as in some containers, or the folder cannot be written to.
    """
    remedy = "set data.cache to a folder that can be written to"
    try:
        cache = wanted or Path.home() / ".cache" / "surefoot"
        cache.mkdir(parents=True, exist_ok=True)
    except RuntimeError:
        raise DataError(
            f"data.cache: files of remote data need a folder, and this user has no home; {remedy}"
        ) from None
    except OSError as error:
        raise DataError(f"data.cache: {error.filename}: {error.strerror}; {remedy}") from None
    if not os.access(cache, os.W_OK):
        raise DataError(f"data.cache: {cache}: cannot be written to; {remedy}")
    return cache


class LocalFolder:
    """It is a folder on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    def child(self, name: str) -> Folder:
        return LocalFolder(self._path / name)

    def parent(self) -> Folder:
        return LocalFolder(self._path.absolute().parent)

    def has(self, name: str) -> bool:
        with data_errors(self._path / name):
            return (self._path / name).exists()

    def read(self, name: str) -> bytes:
        with data_errors(self._path / name):
            return read_whole(self._path / name)

    def local(self, name: str, size: int, sha256: str) -> Path:
        path = self._path / name
        with data_errors(path):
            found = path.stat().st_size
        if found != size:
            raise DataError(
                f"{shown(path)}: changed since it was indexed: {found} bytes, the manifest says {size}"
            )
        return path


class RemoteFolder:
    """It is a folder behind a URL; files are cached by their content, so several runs and ranks share one copy.

    What is in the cache is read once before it is used, as other processes have written it, some time ago.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        self._cache = cache
        self._verified: set[Path] = set()
        self._small: dict[str, bytes] = {}
        """Files that were read as a whole, by name."""
        with remote_errors(url):
            self._filesystem, self._root = fsspec.core.url_to_fs(url, **filesystem_options(url))

    @property
    def name(self) -> str:
        return masked(self._url)

    def child(self, name: str) -> Folder:
        return RemoteFolder(f"{self._url}/{name}", self._cache)

    def parent(self) -> Folder:
        above = self._url.rpartition("/")[0]
        return self if above.endswith(":/") else RemoteFolder(above, self._cache)

    def has(self, name: str) -> bool:
        """It fetches the file: an answer that it is not there is another than none, or that it is not for us."""
        try:
            self.read(name)
        except RemoteMissing:
            return False
        return True

    def read(self, name: str) -> bytes:
        if name not in self._small:
            self._small[name] = retried(lambda: self._read(name))
        return self._small[name]

    def _read(self, name: str) -> bytes:
        with remote_errors(f"{self._url}/{name}"), self._filesystem.open(f"{self._root}/{name}") as file:
            content = bytearray()
            while chunk := file.read(COPY_BYTES):  # as much as there is at the moment
                content += chunk
                if len(content) > LARGEST_DOCUMENT:
                    raise DataError(
                        f"{self.name}/{name}: larger than {LARGEST_DOCUMENT} bytes, as no sound one is"
                    )
        if name.endswith(".json") and content.lstrip().startswith(b"<"):
            raise DataError(
                f"{self.name}/{name}: the server sent a web page (HTML); it may ask for a login, or answer so for "
                "what it does not have"
            )
        return bytes(content)

    def local(self, name: str, size: int, sha256: str) -> Path:
        path = self._cache / sha256[:2] / f"{sha256}{Path(name).suffix}"
        with data_errors(path):
            if not self._is_sound(path, size, sha256):
                path.parent.mkdir(parents=True, exist_ok=True)
                with locked(path.with_suffix(".lock")):
                    if not self._is_sound(path, size, sha256):
                        self._fetch(name, path, size, sha256)
            self._verified.add(path)
        return path

    def _is_sound(self, path: Path, size: int, sha256: str) -> bool:
        """It tells whether a file is in the cache, as it should be."""
        try:
            with open_regular(path) as file:
                same_size = os.fstat(file.fileno()).st_size == size
                return same_size and (path in self._verified or sha256_of(file) == sha256)
        except OSError:
            return False

    def _fetch(self, name: str, path: Path, size: int, sha256: str) -> None:
        """It downloads, again when the connection breaks; only a complete and verified file gets its name."""
        partial = path.with_suffix(".partial")
        try:
            retried(lambda: self._download(name, partial, size, sha256))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _download(self, name: str, target: Path, size: int, sha256: str) -> None:
        """It writes what the server sends, and not a byte more than the manifest says there is."""
        url, digest, left = f"{self._url}/{name}", hashlib.sha256(), size
        target.unlink(missing_ok=True)
        with (
            cache_errors(self._cache),
            create_file(target) as writer,
            remote_errors(url),
            self._filesystem.open(f"{self._root}/{name}", "rb") as reader,
        ):
            while chunk := reader.read(min(COPY_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise DataError(f"{masked(url)}: larger than the {size} bytes that the manifest says")
                digest.update(chunk)
                with cache_errors(self._cache):
                    write_all(writer.fileno(), chunk)
        if left:
            raise RemoteBusy(f"{masked(url)}: {size - left} bytes, the manifest says {size}")
        if digest.hexdigest() != sha256:
            raise RemoteBusy(f"{masked(url)}: SHA-256 is {digest.hexdigest()}, the manifest says {sha256}")


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """It turns an OSError of the cache into a DataError that names it, and not the server."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"data.cache: {shown(cache)}: {error.strerror}; all files of remote data are kept there: set data.cache to "
            "a folder that has room for them"
        ) from error


@contextmanager
def data_errors(path: Path) -> Iterator[None]:
    """It turns an OSError about `path` into a DataError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{shown(error.filename or path)}: is missing") from error
    except OSError as error:
        raise DataError(f"{shown(error.filename or path)}: {error.strerror or shown(error)}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """It holds an exclusive lock on `path` against other processes; a dead process holds nothing. Raises OSError."""
    descriptor = open_own(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
