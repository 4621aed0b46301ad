"""A file of comma-separated values is read here as a time series: a header, a column of times, columns of numbers.

    table = read_table("ETTh1.csv", TableForm())

Nothing is filled in, resampled or left out: what is no row of numbers ends the reading, with its line and column.

N  rows, D  columns
"""

import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as
from data_pipeline.preparing.compression import opened_content
from data_pipeline.preparing.documents import Run, text_runs
from data_pipeline.preparing.source_files import SourceFile, SourceFiles, opened_source
from data_pipeline.series.times import (
    Microseconds,
    TimeReader,
    duration,
    in_words,
    uneven,
    unordered,
    usual_step,
)
from data_pipeline.shown import shown

PLAIN = re.compile(r"[0-9+\-.eE \t]*")
"""What numbers in decimal digits are made of; Python reads more as a number, such as `1_000` and `nan`."""

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "nil", "missing", "-", "?"})
"""What stands for a value that is missing, in small letters."""

LARGEST = 1e100
"""Magnitude that no value reaches: squares of it can be added up."""

SHOWN_COLUMNS = 8


@dataclass(frozen=True)
class TableForm:
    """It says how files are to be read."""

    time_column: str | None = None
    """Name of the column of times; none: the first one."""
    has_times: bool = True
    """Whether there is a column of times."""
    columns: tuple[str, ...] = ()
    """Names of the columns to be taken, in this order; empty: all but the times."""
    uneven: bool = False
    """Whether rows are taken as they come where they are not equally far apart in time."""


@dataclass(frozen=True)
class Table:
    """It is the content of a file."""

    name: str
    """Path of the file, for messages."""
    columns: tuple[str, ...]
    values_ND: NDArray[np.float64] = field(repr=False)
    times_N: Microseconds | None = field(repr=False)
    """Microseconds since 1970, in UTC where times have an offset, that rise; none where there is no column of times."""
    zoned: bool
    """Whether times have an offset from UTC."""
    time_column: str
    """Name of the column of times."""
    lines_N: NDArray[np.int64] = field(repr=False)
    """Lines of the file that the rows stand on, from 1."""

    def __len__(self) -> int:
        return len(self.values_ND)

    @property
    def step_seconds(self) -> float | None:
        """It is the time from a row to the next; none where there are no times, or where that differs."""
        if self.times_N is None or uneven(self.times_N) is not None:
            return None
        return usual_step(self.times_N) / 1e6

    @property
    def uneven_rows(self) -> int:
        """It counts the rows that come after another step in time than most."""
        if self.times_N is None:
            return 0
        return int((np.diff(self.times_N) != usual_step(self.times_N)).sum())

    def time(self, row: int) -> str | None:
        """It returns the time of a row as ISO 8601 has it; none where there are no times."""
        return None if self.times_N is None else in_words(int(self.times_N[row]), self.zoned)

    def place(self, row: int, column: str) -> str:
        """It says where a value stands, for messages."""
        return f"{self.name}, line {self.lines_N[row]}, column {shown(column)!r}"


def read_table(name: str, form: TableForm) -> Table:
    """It reads the file at a path, packed where its name says so.

    Raises DataError, which names line and column, for what is no table of numbers at times that rise by equal steps.
    """
    return table_of(named_file(name), form)


def named_file(name: str) -> SourceFile:
    """It finds a file. Raises DataError when there is none, or something else than one file."""
    found = SourceFiles()
    found.add(name)
    if found.folders or len(found.files) != 1 or not found.files[0].named:
        raise DataError(f"{shown(name)}: is no file; name the files of series one by one, in their order")
    return found.files[0]


def table_of(file: SourceFile, form: TableForm) -> Table:
    """It reads a file that was found. It raises what `read_table` raises."""
    with parsed_as(DataError, file.path), opened_source(file) as raw:
        rows = text_runs(opened_content(file.path, raw), str(file.path))
        table = _Reader(shown(file.path), form, rows).table()
    _check_values(table)
    if table.times_N is not None:
        _check_times(table, form)
    return table


class _Reader:
    """It reads the rows of a file."""

    def __init__(self, name: str, form: TableForm, rows: Iterator[Run]) -> None:
        self._name = name
        self._form = form
        self._rows = rows
        self._times = TimeReader()
        place, line, _, _ = next(rows, ("", "", 0, 0))
        if not line.strip():
            raise DataError(
                f"{name}: has no header in its first line: names of columns, with commas between them"
            )
        self._header = [cell.strip() for cell in _cells(place, line)]
        self._time, self._places = self._chosen(place, line)

    def table(self) -> Table:
        """It reads what stands below the header."""
        values, times, lines = array("d"), array("q"), array("q")
        blank = ""
        for place, line, number, _ in self._rows:
            if not line.strip() and len(self._header) > 1:
                blank = blank or place
                continue
            if blank:
                raise DataError(f"{blank}: is blank, and rows follow; take it out")
            cells = _cells(place, line)
            if len(cells) != len(self._header):
                raise DataError(
                    f"{place}: has {len(cells)} values, but the header has {len(self._header)} columns; numbers have a "
                    "decimal point, and commas stand between them"
                )
            if self._time is not None:
                times.append(self._microseconds(place, cells[self._time]))
            values.extend(self._numbers(place, cells))
            lines.append(number)
        if len(lines) < 2:
            raise DataError(
                f"{self._name}: has {len(lines)} rows below its header; a series has two at least"
            )
        return Table(
            name=self._name,
            columns=tuple(self._header[place] for place in self._places),
            values_ND=np.frombuffer(values).reshape(len(lines), len(self._places)),
            times_N=None if self._time is None else np.frombuffer(times, np.int64),
            zoned=bool(self._times.zoned),
            time_column="" if self._time is None else self._header[self._time],
            lines_N=np.frombuffer(lines, np.int64),
        )

    def _chosen(self, place: str, line: str) -> tuple[int | None, list[int]]:
        """It returns the places of the times and of the values in a row."""
        form, header = self._form, self._header
        if odd := next((mark for mark in ";\t|" if mark in line and len(header) == 1), None):
            raise DataError(
                f"{place}: has {odd!r} between its columns; write commas there, and a decimal point in numbers"
            )
        time = self._found(place, form.time_column) if form.time_column else 0
        if form.has_times and is_time(header[time]):
            self._refuse_header(place, header[time])
        if not form.has_times and all(map(is_number, header)):
            self._refuse_header(place, header[0])
        chosen = [self._found(place, name) for name in form.columns]
        if not form.columns:
            chosen = [number for number in range(len(header)) if number != time or not form.has_times]
        if not chosen:
            raise DataError(f"{place}: has no column beside that of times; --no-times where that is no time")
        names = [header[number] for number in chosen]
        if "" in names:
            raise DataError(f"{place}: column {chosen[names.index('')] + 1} has no name")
        if len(set(names)) < len(names):
            self._refuse_twice(place, next(name for name in names if names.count(name) > 1))
        if form.has_times and time in chosen:
            raise DataError(
                f"{place}: column {shown(header[time])!r} is that of times, so it cannot hold values as well; "
                "--time-column names the column of times, and --no-times is for files without one"
            )
        return (time if form.has_times else None), chosen

    def _found(self, place: str, name: str) -> int:
        if name not in self._header:
            names = ", ".join(map(shown, self._header[:SHOWN_COLUMNS]))
            more = ", ..." if len(self._header) > SHOWN_COLUMNS else ""
            raise DataError(f"{place}: has no column {shown(name)!r}; there are {names}{more}")
        if self._header.count(name) > 1:
            self._refuse_twice(place, name)
        return self._header.index(name)

    def _refuse_twice(self, place: str, name: str) -> NoReturn:
        raise DataError(f"{place}: has two columns {shown(name)!r}; give each a name of its own")

    def _refuse_header(self, place: str, cell: str) -> NoReturn:
        raise DataError(
            f"{place}: has {shown(cell)!r} where the name of a column belongs; put a header above the rows, as in "
            "date,first,second"
        )

    def _microseconds(self, place: str, cell: str) -> int:
        assert self._time is not None
        try:
            return self._times.microseconds(cell)
        except ValueError as error:
            raise DataError(
                f"{place}, column {shown(self._header[self._time])!r}: {shown(error)}; --time-column names the column "
                "of times, and --no-times is for files without one"
            ) from error

    def _numbers(self, place: str, cells: Sequence[str]) -> list[float]:
        chosen = [cells[number] for number in self._places]
        if PLAIN.fullmatch("".join(chosen)):
            try:
                return list(map(float, chosen))
            except ValueError:
                pass
        odd, number = next(
            (cell, number) for cell, number in zip(chosen, self._places, strict=True) if not is_number(cell)
        )
        where = f"{place}, column {shown(self._header[number])!r}"
        if odd.strip().lower() in MISSING:
            raise DataError(
                f"{where}: the value is missing ({shown(odd)!r}); nothing is filled in here: do so before, or prepare "
                "data without the column (--columns)"
            )
        raise DataError(f"{where}: {shown(odd)!r} is no finite number, such as -1.5 or 2e3")


def _cells(place: str, line: str) -> list[str]:
    """It cuts a line at its commas. Raises DataError for quotes that do not end in it."""
    if '"' not in line:
        return line.split(",")
    with parsed_as(DataError, place):
        return next(csv.reader([line], strict=True))


def is_number(cell: str) -> bool:
    """It tells whether a cell holds a number in decimal digits."""
    try:
        float(cell)
    except ValueError:
        return False
    return PLAIN.fullmatch(cell) is not None


def is_time(cell: str) -> bool:
    """It tells whether a cell holds a time."""
    try:
        TimeReader().microseconds(cell)
    except ValueError:
        return False
    return True


def _check_values(table: Table) -> None:
    """It refuses numbers that are too large to be reckoned with, which those beyond the range of float64 are, too."""
    if (odd := ~(np.abs(table.values_ND) <= LARGEST)).any():
        row, column = divmod(int(odd.argmax()), len(table.columns))
        value = table.values_ND[row, column]
        raise DataError(
            f"{table.place(row, table.columns[column])}: {value:g} is beyond {LARGEST:g}, the largest number that is "
            "taken; write it in a larger unit, or prepare data without the column (--columns)"
        )


def _check_times(table: Table, form: TableForm) -> None:
    """It refuses times that do not rise, or not by equal steps."""
    times_N, column = table.times_N, table.time_column
    assert times_N is not None
    if (row := unordered(times_N)) is not None:
        how = "the same time as" if times_N[row] == times_N[row - 1] else "an earlier time than"
        raise DataError(
            f"{table.place(row, column)}: {table.time(row)} is {how} that of line {table.lines_N[row - 1]}; rows must "
            "be in the order of time, each once (local times repeat an hour in autumn: write UTC, or their offset)"
        )
    if not form.uneven and (row := uneven(times_N)) is not None:
        raise DataError(
            f"{table.place(row, column)}: {table.time(row)} comes {duration(int(times_N[row] - times_N[row - 1]))} "
            f"after the row before, but most rows are {duration(usual_step(times_N))} apart; nothing is resampled or "
            "filled in here: do so before, or prepare data with the rows as they come (--uneven)"
        )
