"""Prepared data lies in a local folder, or at an fsspec URL whose large files are cached on this machine."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import fsspec.core

from data_pipeline.errors import DataError

COPY_BYTES = 1 << 20
DOWNLOAD_ATTEMPTS = 3


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
        """It returns the whole of a small file."""

    def local(self, name: str, size: int, sha256: str) -> Path:
        """It returns a path on this machine with the file of that size and content."""


def open_folder(path: str, cache: Path | None) -> Folder:
    """It opens the folder at a path or URL; `cache` (default: `~/.cache/surefoot`) keeps the files of a remote one."""
    if "://" not in path or path.startswith("file://"):
        return LocalFolder(Path(path.removeprefix("file://")))
    return RemoteFolder(path.rstrip("/"), cache or Path.home() / ".cache" / "surefoot")


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
        return (self._path / name).exists()

    def read(self, name: str) -> bytes:
        with data_errors(self._path / name):
            return (self._path / name).read_bytes()

    def local(self, name: str, size: int, sha256: str) -> Path:
        path = self._path / name
        with data_errors(path):
            found = path.stat().st_size
        if found != size:
            raise DataError(f"{path}: changed since it was indexed: {found} bytes, the manifest says {size}")
        return path


class RemoteFolder:
    """It is a folder behind a URL; files are cached by their content, so several runs and ranks share one copy."""

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        self._cache = cache
        with remote_errors(url):
            self._filesystem, self._root = fsspec.core.url_to_fs(url)

    @property
    def name(self) -> str:
        return self._url

    def child(self, name: str) -> Folder:
        return RemoteFolder(f"{self._url}/{name}", self._cache)

    def parent(self) -> Folder:
        above = self._url.rpartition("/")[0]
        return self if above.endswith(":/") else RemoteFolder(above, self._cache)

    def has(self, name: str) -> bool:
        with remote_errors(f"{self._url}/{name}"):
            return bool(self._filesystem.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        with remote_errors(f"{self._url}/{name}"):
            return bytes(self._filesystem.cat_file(f"{self._root}/{name}"))

    def local(self, name: str, size: int, sha256: str) -> Path:
        path = self._cache / sha256[:2] / f"{sha256}{Path(name).suffix}"
        with data_errors(path), locked(path.with_suffix(".lock")):
            if not path.exists() or path.stat().st_size != size:
                self._fetch(name, path, sha256)
        return path

    def _fetch(self, name: str, path: Path, sha256: str) -> None:
        """It downloads, again when the connection breaks; only a complete and verified file gets its name."""
        partial = path.with_suffix(".partial")
        try:
            for left in reversed(range(DOWNLOAD_ATTEMPTS)):
                try:
                    self._download(name, partial, sha256)
                    break
                except DataError:
                    if not left:
                        raise
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _download(self, name: str, target: Path, sha256: str) -> None:
        digest = hashlib.sha256()
        with (
            remote_errors(f"{self._url}/{name}"),
            self._filesystem.open(f"{self._root}/{name}", "rb") as reader,
            target.open("wb") as writer,
        ):
            while chunk := reader.read(COPY_BYTES):
                digest.update(chunk)
                writer.write(chunk)
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{self._url}/{name}: SHA-256 is {digest.hexdigest()}, the manifest says {sha256}"
            )


@contextmanager
def data_errors(path: Path) -> Iterator[None]:
    """It turns an OSError about `path` into a DataError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or path}: is missing") from error
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}") from error


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """It turns whatever an fsspec protocol raises about `url` into a DataError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{url}: is missing") from error
    except Exception as error:
        raise DataError(f"{url}: cannot be read: {error or type(error).__name__}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """It holds an exclusive lock on `path` against other processes; a dead process holds nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
