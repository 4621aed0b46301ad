"""Sources as a user names them are found as files here: each file once, and all else is told.

    found = SourceFiles()
    found.add("corpus/")                # a file, a folder, a pattern, or a file:// URL of one
    found.files, found.left_out, found.duplicates

Names are bytes to the system and may hold what is no text: they are shown by `shown`, never printed as they are.
"""

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.files import open_regular
from data_pipeline.preparing.workspace import TargetExists
from data_pipeline.shards.storage import data_errors, local_path
from data_pipeline.shown import shown

Parts = tuple[str, ...]
"""A path below a source, by its parts."""

Wanted = Callable[[Parts, bool], bool]
"""It tells whether a file is wanted, or, with True, whether there may be any in a folder."""

HIDDEN = "hidden"
OUTSIDE = "a link that leads out of the source; name what it leads to, to have that read"
OURS = "prepared data, which is no raw data"

_OUR_FILES = {
    "prepare.json": (b'"format"', b'"task"', b'"files"'),
    "manifest.json": (b'"format"', b'"kind"', b'"split"'),
}
"""Files that mark a folder as prepared data -> what they hold near their beginning."""


@dataclass(frozen=True)
class SourceFile:
    """It is a file that some source names."""

    path: Path
    named: bool
    """Whether the user named it, and not a folder or pattern that it was found by."""
    size: int
    modified_ns: int
    identity: tuple[int, int]
    """Device and inode."""

    @classmethod
    def of(cls, path: Path, state: os.stat_result, *, named: bool = False) -> "SourceFile":
        """It returns the file that `state` is about."""
        return cls(path, named, state.st_size, state.st_mtime_ns, (state.st_dev, state.st_ino))


@dataclass(frozen=True)
class LeftOut:
    """It is something that is not read."""

    name: str
    reason: str


class SourceFiles:
    """It collects the files of sources, in the order of the sources and sorted by path in each.

    A file that has several names, be they links or sources that overlap, is there once; the others are `duplicates`.
    """

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self.duplicates: list[Path] = []
        self.folders: list[Path] = []
        """Sources that are folders."""
        self._files: dict[tuple[int, int], SourceFile] = {}

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """They are the files that were found."""
        return tuple(self._files.values())

    def add(self, source: str) -> None:
        """It adds what a source names. Raises DataError when that is nothing, or nothing that can be read twice."""
        path = local_path(source)
        if path is None:
            raise DataError(f"{shown(source)}: is no file of this machine; download it first")
        before = len(self._files) + len(self.duplicates), len(self.left_out)
        try:
            state = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if os.path.islink(path):
                raise DataError(f"{shown(path)}: is a link to nothing") from error
            self._add_pattern(path)
        except OSError as error:
            raise DataError(f"{shown(path)}: {error.strerror}") from error
        else:
            if stat.S_ISDIR(state.st_mode):
                if _is_ours(path, os.listdir(path) if os.access(path, os.R_OK) else []):
                    raise DataError(f"{shown(path)}: is {OURS}; name the files that it was made from")
                self.folders.append(path)
                self.add_folder(path)
            elif stat.S_ISREG(state.st_mode):
                self._add_file(SourceFile.of(path, state, named=True))
            else:
                raise DataError(
                    f"{shown(path)}: is a pipe, socket or device; sources are read several times, write it to a file"
                )
        if (len(self._files) + len(self.duplicates)) == before[0]:
            missed = self.left_out[before[1] :]
            why = f" ({shown(missed[0].name)}: {missed[0].reason})" if missed else ""
            raise DataError(f"{shown(path)}: no such file, and no files in such a folder or pattern{why}")

    def add_folder(self, root: Path, wanted: Wanted = lambda parts, is_folder: True) -> None:
        """It adds the files below a folder that are wanted.

        Hidden ones are left out, and so are links that lead out of the folder; the others are followed, each
        folder once, so that loops end.
        """
        walk = _Walk(root, wanted, self)
        for parts in sorted(walk.files()):
            path = root.joinpath(*parts)
            try:
                self._add_file(SourceFile.of(path, path.stat()))
            except OSError as error:
                self.leave_out(path, error.strerror or str(error))

    def leave_out(self, path: Path, reason: str) -> None:
        """It notes that something is not read."""
        self.left_out.append(LeftOut(str(path), reason))

    def _add_file(self, file: SourceFile) -> None:
        known = self._files.setdefault(file.identity, file)
        if known is not file:
            self.duplicates.append(file.path)
            self._files[file.identity] = replace(known, named=known.named or file.named)

    def _add_pattern(self, pattern: Path) -> None:
        """It adds the files, and the files of the folders, whose path the pattern matches."""
        fixed = next((n for n, part in enumerate(pattern.parts) if glob.has_magic(part)), None)
        if fixed is None:
            return
        root, parts = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
        matches = _matcher(parts)
        deep = "**" in parts

        def wanted(found: Parts, is_folder: bool) -> bool:
            above = any(matches(found[:end]) for end in range(1, len(found) + 1))
            return above or (is_folder and (deep or len(found) < len(parts)))

        if root.is_dir():
            self.add_folder(root, wanted)


def check_apart(out: Path, found: SourceFiles) -> None:
    """It raises TargetExists where the output would lie in a source, or a source in what the output may replace."""
    target = Path(os.path.realpath(out))
    for folder in found.folders:
        if target.is_relative_to(os.path.realpath(folder)):
            raise TargetExists(f"{shown(out)}: lies in the source {shown(folder)}; choose another --out")
    for file in found.files:
        if Path(os.path.realpath(file.path)).is_relative_to(target):
            raise TargetExists(f"{shown(out)}: holds the source {shown(file.path)}; choose another --out")


@contextmanager
def opened_source(file: SourceFile) -> Iterator[BufferedReader]:
    """It opens a file that was found. Raises DataError when it is not, or does not stay, as it was then."""
    with data_errors(file.path), open_regular(file.path, follow=True) as raw:
        _check_unchanged(file, raw)
        yield raw
        _check_unchanged(file, raw)


def _check_unchanged(file: SourceFile, raw: BufferedReader) -> None:
    if SourceFile.of(file.path, os.fstat(raw.fileno()), named=file.named) != file:
        raise DataError(f"{shown(file.path)}: has changed while it was read")


class _Walk:
    """It walks through one folder."""

    def __init__(self, root: Path, wanted: Wanted, found: SourceFiles) -> None:
        self._root = root
        self._inside = Path(os.path.realpath(root))
        self._wanted = wanted
        self._found = found
        self._visited: set[tuple[int, int]] = set()
        self._links: list[Parts] = []

    def files(self) -> list[Parts]:
        """It returns the files; links are followed when all else has been seen, so that the true names count."""
        files = self._below(())
        while self._links:
            links, self._links = sorted(self._links), []
            for parts in links:
                files += self._behind(parts)
        return files

    def _below(self, top: Parts) -> list[Parts]:
        files: list[Parts] = []
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            for entry in self._entries(folder):
                parts = (*folder, entry.name)
                is_folder = entry.is_dir(follow_symlinks=False)
                if not self._wanted(parts, is_folder or entry.is_symlink()):
                    continue
                if entry.name.startswith("."):
                    self._found.leave_out(self._path(parts), HIDDEN)
                elif entry.is_symlink():
                    self._links.append(parts)
                elif is_folder:
                    waiting.append(parts)
                elif entry.is_file(follow_symlinks=False):
                    files.append(parts)
                else:
                    self._found.leave_out(self._path(parts), "a pipe, socket or device")
        return files

    def _entries(self, folder: Parts) -> list["os.DirEntry[str]"]:
        """It lists a folder that was not visited before and is not ours."""
        path = self._path(folder)
        try:
            state = path.stat()
            if (identity := (state.st_dev, state.st_ino)) in self._visited:
                self._found.duplicates.append(path)
                return []
            self._visited.add(identity)
            with os.scandir(path) as listing:
                entries = list(listing)
        except OSError as error:
            self._found.leave_out(path, error.strerror or str(error))
            return []
        if _is_ours(path, [entry.name for entry in entries]):
            self._found.leave_out(path, OURS)
            return []
        return entries

    def _behind(self, parts: Parts) -> list[Parts]:
        """It returns the files that a link leads to."""
        path = self._path(parts)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            self._found.leave_out(path, f"a link to nothing ({error.strerror})")
            return []
        is_folder = stat.S_ISDIR(mode)
        if not is_folder and not self._wanted(parts, False):
            return []
        if not Path(os.path.realpath(path)).is_relative_to(self._inside):
            self._found.leave_out(path, OUTSIDE)
        elif is_folder:
            return self._below(parts)
        elif stat.S_ISREG(mode):
            return [parts]
        else:
            self._found.leave_out(path, "a link to a pipe, socket or device")
        return []

    def _path(self, parts: Parts) -> Path:
        return self._root.joinpath(*parts)


def _matcher(pattern: Parts) -> Callable[[Parts], bool]:
    """It returns what tells whether a path matches a pattern, in which `**` stands for any number of folders.

    It follows all ways to match at once: one after another they are too many where there are several `**`.
    """
    pattern = tuple(
        part for part, above in zip(pattern, ("", *pattern), strict=False) if not part == above == "**"
    )
    any_number = {place for place, part in enumerate(pattern) if part == "**"}
    expressions = [re.compile(fnmatch.translate(part)) for part in pattern]

    def reached(places: set[int]) -> set[int]:
        return places | {place + 1 for place in places & any_number}

    def matches(parts: Parts) -> bool:
        places = reached({0})
        for part in parts:
            fitting = {place for place in places - {len(pattern)} if expressions[place].match(part)}
            places = reached({place + (place not in any_number) for place in fitting})
        return len(pattern) in places

    return matches


def _is_ours(folder: Path, names: list[str]) -> bool:
    """It tells whether a folder holds what `surefoot prepare` has written."""
    for name, marks in _OUR_FILES.items():
        if name in names:
            try:
                with open_regular(folder / name, follow=True) as file:
                    head = file.read(1 << 12)
            except OSError:
                continue
            if all(mark in head for mark in marks):
                return True
    return False
