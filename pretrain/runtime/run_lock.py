"""A run folder is locked, so that one run at a time uses it."""

import fcntl
import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from data_pipeline.files import open_own, write_all
from data_pipeline.parsing import parse_json
from data_pipeline.shown import shown
from pretrain.errors import ConfigurationError
from pretrain.run_folder import RUN_LOCK


class RunLock:
    """It holds a lock file of a run folder until it is released or the process ends, however it ends.

    The lock is on the file, wherever that is moved to, and a run writes to a path: `problem` compares the two.

    The kernel's lock counts, not the file: one that a killed run has left stops nobody. One rank takes it.
    """

    def __init__(self, folder: Path, name: str = RUN_LOCK) -> None:
        """Take the lock. Raises ConfigurationError, which names the holder, if another process has it."""
        self._path = folder / name
        try:
            self._descriptor = open_own(self._path)
        except OSError as error:
            raise ConfigurationError(
                f"{self._path}: {error.strerror}; the run cannot write to its folder: let it, or set run.folder to a "
                "folder that it can write to"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            reason = self._refusal(error)
            os.close(self._descriptor)
            raise ConfigurationError(reason) from error
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%F %T}"}
        os.ftruncate(self._descriptor, 0)
        with suppress(OSError):  # a full disk; the lock is held all the same
            write_all(self._descriptor, json.dumps(holder).encode())

    def release(self) -> None:
        """Let the lock go. The file stays: without it two later runs could lock two different files of that name."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def problem(self) -> str:
        """It says so if the run folder is no longer the one that was locked; empty if it is."""
        try:
            if os.path.samestat(self._path.lstat(), os.fstat(self._descriptor)):
                return ""
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        return (
            f"{self._path.parent} was moved, removed or replaced, or its {self._path.name} was, while the run was "
            "at work; nothing more is written there. Move it back, or set run.folder and run.name to where it is now, "
            "and the run goes on from its last checkpoint"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _refusal(self, error: OSError) -> str:
        if not isinstance(error, BlockingIOError):
            return f"{self._path}: {error.strerror}; set run.folder to a file system that supports file locks"
        return (
            f"{self._path.parent} is in use by another run ({self._holder()}); "
            "wait for it to end, stop it, or choose another run.name"
        )

    def _holder(self) -> str:
        try:
            holder = parse_json(os.pread(self._descriptor, 4096, 0))
            return shown(f"process {holder['pid']} on {holder['host']} since {holder['since']}")
        except (ValueError, KeyError, TypeError):
            return "it has not said which"
