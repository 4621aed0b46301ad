"""Files that users have commands write: each takes the place of what has its name, so that must not be what is read."""

import argparse
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.files import replace_file
from data_pipeline.shards.storage import local_path
from data_pipeline.shown import shown
from pretrain.errors import ConfigurationError
from pretrain.run_folder import CHECKPOINTS, CONFIG

FILES_TO_WRITE = {"--alignments": "alignments", "--out": "forecasts", "--plot": "plot"}
"""Options that name a file to be written, with the names that parsers give them."""


def check_files_to_write(options: argparse.Namespace) -> None:
    """It raises ConfigurationError for a file that cannot be written where it is to be, or would take the place of what
    is no file, of what the command reads, or of another that it writes; and for one in a folder that is read."""
    files = {
        option: path
        for option, name in FILES_TO_WRITE.items()
        if (path := getattr(options, name, None)) is not None
    }
    read = list(_paths(_read(options)))
    for number, (option, path) in enumerate(files.items()):
        _check_place(option, path)
        _check_apart(option, path, read)
        for other in list(files)[:number]:
            if _is_same(path, files[other]):
                raise ConfigurationError(f"{option} {shown(path)}: is written by {other}; give another file")


def check_apart_from_data(options: argparse.Namespace, data: DataConfig) -> None:
    """It raises ConfigurationError for a file that would be written into the data of the model's run."""
    folders = list(_paths(source.path for source in (*data.sources, *(data.validation or ()))))
    for option, name in FILES_TO_WRITE.items():
        if (path := getattr(options, name, None)) is not None:
            _check_apart(option, path, folders)


def written(option: str, path: Path, content: str | bytes) -> None:
    """It writes the file that an option names. Raises DataError."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise DataError(f"{option} {shown(path)}: {error.strerror}") from error


def _paths(names: Iterable[str]) -> Iterator[Path]:
    """It yields the paths on this machine that are among paths and URLs."""
    for name in names:
        with suppress(DataError):  # of what names no place, nothing is read
            if (path := local_path(name)) is not None:
                yield path


def _read(options: argparse.Namespace) -> Iterator[str]:
    """It yields whatever the other options name: what of it is no path is that of no file, either."""
    for name, value in vars(options).items():
        if name not in FILES_TO_WRITE.values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str | Path):
                    yield str(one)
    if (model := getattr(options, "model", None)) is not None:
        run = model if model.is_dir() else Path(str(model).rpartition("@")[0] or ".")
        if model.is_dir() and run.absolute().parent.name == CHECKPOINTS:
            run = run.absolute().parent.parent
        yield from (str(run), str(run / CHECKPOINTS)) if (run / CONFIG).exists() else ()


def _check_place(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigurationError(f"{option} {shown(path)}: there is no folder {shown(path.parent)}")
    # A file is replaced by renaming another to it, which would do away with a device such as /dev/null as well.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigurationError(
            f"{option} {shown(path)}: is no file, but a folder, a link, a pipe or a device; give a new file"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{option} {shown(path)}: no file can be made in {shown(path.parent)}; choose another folder"
        )


def _check_apart(option: str, path: Path, read: Iterable[Path]) -> None:
    for one in read:
        if _is_same(path, one):
            raise ConfigurationError(f"{option} {shown(path)}: is what the command reads; give another file")
        if _lies_in(path, one):
            raise ConfigurationError(
                f"{option} {shown(path)}: lies in {shown(one)}, which the command reads; choose another folder"
            )


def _is_same(path: Path, other: Path) -> bool:
    """It tells whether two paths name one file, by hard links as well, whether it is there yet or not."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return os.path.realpath(path) == os.path.realpath(other)


def _lies_in(path: Path, folder: Path) -> bool:
    try:
        return folder.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):
        return False
