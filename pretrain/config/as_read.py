"""Ranks train with the settings that `surefoot train` has read, whatever becomes of the file meanwhile.

It takes seconds until they read it, in the queue of a scheduler hours, and a supervisor starts them anew after days. So
they are told what was read, by its digest: of the settings as they stand in the file, with those of the command line,
and before variables such as $SCRATCH in them are replaced, which is for each host to do.
"""

import hashlib
import json
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote_to_bytes

import tomli_w

from data_pipeline.files import replace_file
from data_pipeline.shown import shown
from pretrain.config.loader import Table, config_of, load_config, read_settings, settings_file
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.run_folder import SUPERVISED_CONFIG

MAY_DIFFER = ("data.cache", "data.sources", "data.validation", "run.deepspeed_config")
"""Hosts may have data, caches and files at paths of their own: what they hold is compared instead."""
REMEDY = "give each run a file of its own, and start it again"


@dataclass(frozen=True)
class AsRead:
    """It says which settings were read, where and when, in a word that a command line can hold."""

    host: str
    time: int
    """In ns since the epoch."""
    digest: str
    common: str
    """The digest without what may differ from host to host."""
    copy: Path | None = None
    """The supervisor keeps what it has read in this file."""

    @classmethod
    def of(cls, table: Table, copy: Path | None = None) -> Self:
        """It describes settings that were read just now on this host."""
        return cls(socket.gethostname(), time.time_ns(), digest(table), digest(common(table)), copy)

    @classmethod
    def parse(cls, text: str) -> Self:
        """It reads what `str` has written. Raises ValueError."""
        host, when, whole, part, copy = text.split(",")
        path = Path(unquote_to_bytes(copy).decode(errors="surrogateescape")) if copy else None
        return cls(host, int(when), whole, part, path)

    def __str__(self) -> str:
        copy = quote(str(self.copy), errors="surrogateescape") if self.copy else ""
        return ",".join((self.host, str(self.time), self.digest, self.common, copy))

    def has(self, table: Table) -> bool:
        """It tells whether these are the settings that were read."""
        return digest(table) == self.digest

    def allows(self, table: Table, path: Path) -> bool:
        """It tells whether the settings in a file are those that were read, or this host's own version of them.

        Such a version is no younger than the reading: else somebody may have edited the file of all hosts.
        """
        if self.has(table):
            return True
        own = self.host != socket.gethostname() and settings_file(path).stat().st_ctime_ns <= self.time
        return own and digest(common(table)) == self.common


def load_as_read(path: Path, overrides: Sequence[str], read: AsRead | None) -> tuple[RunConfig, str]:
    """It loads the configuration, and refuses one that is not as it was `read`; the supervisor's copy serves instead,
    which the text that is returned as well tells then.

    Raises:
        ConfigurationError: the settings are faulty, or not those that were read.
    """
    if read is None:
        return load_config(path, overrides), ""
    fault = ""
    try:
        table, problems = read_settings(path, overrides)
        allowed = read.allows(table, path)
    except (ConfigurationError, OSError) as error:
        allowed, fault = False, f" ({error})"
    if allowed:
        return config_of(path, table, problems), ""
    changed = (
        f"{shown(path)}: the file has changed since `surefoot train` read it on {shown(read.host)}{fault}"
    )
    if read.copy:
        with suppress(ConfigurationError):
            table, problems = read_settings(read.copy)
            if read.has(table):
                told = f"{changed}; the run goes on with the settings that its supervisor was started with"
                return config_of(read.copy, table, problems), told
    raise ConfigurationError(f"{changed}; {REMEDY}")


def keep_copy(run_folder: Path, table: Table) -> None:
    """It writes what a supervisor has read into the folder of its run; a full disk does without."""
    with suppress(OSError, ValueError):
        replace_file(run_folder / SUPERVISED_CONFIG, tomli_w.dumps(table))


def digest(table: Table) -> str:
    """It returns a digest of settings, which the order of keys does not change."""
    return hashlib.sha256(json.dumps(table, default=str, sort_keys=True).encode()).hexdigest()[:32]


def common(table: Table) -> Table:
    """It returns the settings that all hosts must have alike."""
    return {
        section: {key: value for key, value in keys.items() if f"{section}.{key}" not in MAY_DIFFER}
        if isinstance(keys, dict)
        else keys
        for section, keys in table.items()
    }
