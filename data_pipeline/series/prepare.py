"""Files of time series become a prepared dataset: a scaler, train, validation and test splits, complete or not at all.

`surefoot forecast` reads its file as is done here, by `read_table` of table.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.preparing.record import make_once, make_record
from data_pipeline.preparing.source_files import SourceFile, SourceFiles, check_apart
from data_pipeline.series.manifest import SeriesManifest
from data_pipeline.series.scaler import SCALER, Scaler, constant_columns, fitted
from data_pipeline.series.splits import Months, Part, Shares, parts_of, write_split
from data_pipeline.series.table import SHOWN_COLUMNS, Table, TableForm, named_file, table_of
from data_pipeline.shown import shown


@dataclass(frozen=True)
class SeriesSettings:
    """It says what to prepare, and how."""

    files: tuple[str, ...]
    out: Path
    form: TableForm
    cut: Shares | Months
    context: int
    """Rows in front of validation and test that their first windows begin in."""
    keep_constant: bool
    """Whether columns that are constant in train are taken, with deviation 1."""
    shard_samples: int
    overwrite: bool


@dataclass(frozen=True)
class Prepared:
    """It tells what was written, with the manifest of train first."""

    manifests: tuple[SeriesManifest, ...]
    summary: Mapping[str, Any]
    """What was read."""


def prepare_series(settings: SeriesSettings) -> Prepared | None:
    """It makes `settings.out`, and returns None when it is there already, made with these settings from these files.

    Raises DataError, and TargetExists when `out` holds something else.
    """
    found = SourceFiles()
    for name in settings.files:
        found.add(name)
    check_apart(settings.out, found)
    files = [named_file(name) for name in settings.files]
    if found.duplicates:
        raise DataError(f"{shown(found.duplicates[0])}: is named twice; name each series once")
    return make_once(
        settings.out,
        make_record("series", [file.path for file in files], _deciding(settings)),
        lambda folder: _made(folder, files, settings),
        overwrite=settings.overwrite,
        summary=lambda prepared: prepared.summary,
    )


def _deciding(settings: SeriesSettings) -> dict[str, Any]:
    """It returns the settings that decide the output."""
    return {
        "form": {**asdict(settings.form), "columns": list(settings.form.columns)},
        "cut": {type(settings.cut).__name__.lower(): asdict(settings.cut)},
        "context": settings.context,
        "keep_constant": settings.keep_constant,
        "shard_samples": settings.shard_samples,
    }


def _made(folder: Path, files: Sequence[SourceFile], settings: SeriesSettings) -> Prepared:
    """It fills an empty folder."""
    tables = [table_of(file, settings.form) for file in files]
    for table in tables[1:]:
        _check_alike(table, tables[0])
    parts = parts_of(tables, settings.cut, settings.context)
    scaler = _scaler(parts["train"], settings.keep_constant)
    (folder / SCALER).write_bytes(scaler.content)
    manifests = [
        write_split(folder, split, ours, scaler, settings.shard_samples) for split, ours in parts.items()
    ]
    last = list(parts.values())[-1]
    summary = {
        "rows": sum(map(len, tables)),
        "series": len(tables),
        "columns": len(scaler.columns),
        "bytes": sum(file.size for file in files),
        "uneven_rows": sum(table.uneven_rows for table in tables),
        "rows_in_no_split": sum(len(part.table) - part.stop for part in last),
    }
    return Prepared(tuple(manifests), summary)


def _check_alike(table: Table, first: Table) -> None:
    """It raises DataError where a series is not of the columns and the step of the first."""
    if table.columns != first.columns:
        names = [", ".join(map(shown, one.columns[:SHOWN_COLUMNS])) for one in (table, first)]
        raise DataError(
            f"{table.name}: has {len(table.columns)} columns ({names[0]}), but {first.name} has {len(first.columns)} "
            f"({names[1]}); all series have the same, in one order: --columns chooses them"
        )
    if table.step_seconds != first.step_seconds:
        steps = [f"{step:g} s" if (step := one.step_seconds) else "none" for one in (table, first)]
        raise DataError(
            f"{table.name}: its step in time is {steps[0]}, but that of {first.name} is {steps[1]}; prepare them apart"
        )


def _scaler(train: Sequence[Part], keep_constant: bool) -> Scaler:
    """It fits the scaler to the rows of train. Raises DataError for columns that are constant there."""
    columns, rows = train[0].table.columns, [part.table.values_ND[part.rows] for part in train]
    constant = [name for name, is_so in zip(columns, constant_columns(rows), strict=True) if is_so]
    if constant and not keep_constant:
        first, last = train[0].table.lines_N[[train[0].start, train[0].stop - 1]]
        value = rows[0][0, columns.index(constant[0])]
        more = f" (and {len(constant) - 1} more columns)" if len(constant) > 1 else ""
        raise DataError(
            f"{train[0].table.name}, lines {first} to {last}, column {shown(constant[0])!r}{more}: is {value:g} in all "
            "rows of train, so its deviation is 0; name the others with --columns, or take it with --keep-constant, "
            "which has its mean taken away and leaves its scale as it is"
        )
    return fitted(columns, rows, train[0].table.step_seconds)
