"""Series are cut here into train, validation and test splits, and written as chunks of consecutive rows.

N  rows of a split, D  columns
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.series.manifest import SeriesEntry, SeriesManifest
from data_pipeline.series.scaler import LARGEST_SCALED, Scaler
from data_pipeline.series.table import Table
from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.shards.storage import data_errors
from data_pipeline.shards.writer import ShardWriter

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

FIELDS = ("npy",)
"""Extension of the member of a chunk: an array (rows, D) of float32, little-endian."""

CHUNK_ROWS = 256

DAYS_OF_MONTH = 30
SECONDS_OF_DAY = 86_400


@dataclass(frozen=True)
class Shares:
    """They say which parts of the rows are for which split, as the published results on most series have it."""

    train: float
    validation: float
    test: float

    def rows(self, table: Table) -> tuple[int, int, int]:
        """It returns how many rows each split has: train and test their share rounded down, validation the rest."""
        count = len(table)
        test = int(count * self.test)
        train = int(count * self.train) if self.validation else count - test
        return train, count - train - test, test


@dataclass(frozen=True)
class Months:
    """They say how many months of 30 days each split has, as the published results on ETT have it; rows behind them are
    in no split."""

    train: int
    validation: int
    test: int

    def rows(self, table: Table) -> tuple[int, int, int]:
        """It returns how many rows each split has. Raises DataError where months have no number of rows, or not so many
        are there."""
        if table.step_seconds is None:
            raise DataError(f"{table.name}: has no times with equal steps, so no months; give --splits")
        month, rest = divmod(DAYS_OF_MONTH * SECONDS_OF_DAY, table.step_seconds)
        if rest or not month:
            raise DataError(
                f"{table.name}: {DAYS_OF_MONTH} days are no whole number of steps of {table.step_seconds:g} s; give "
                "--splits"
            )
        train, validation, test = (int(month) * months for months in (self.train, self.validation, self.test))
        if (needed := train + validation + test) > len(table):
            raise DataError(
                f"{table.name}: has {len(table):,} rows, but {self.train} + {self.validation} + {self.test} months of "
                f"{DAYS_OF_MONTH} days have {needed:,}; give fewer months"
            )
        return train, validation, test


@dataclass(frozen=True)
class Part:
    """It is what a split has of one series."""

    table: Table
    start: int
    """The first row that is of this split alone."""
    stop: int
    context: int
    """Rows in front of it that go with it."""

    @property
    def rows(self) -> slice:
        """They are the rows that are stored."""
        return slice(self.start - self.context, self.stop)


def parts_of(tables: Sequence[Table], cut: Shares | Months, context: int) -> dict[Split, list[Part]]:
    """It cuts each series. Raises DataError where a split has no row of one, or there is no room for its context."""
    parts: dict[Split, list[Part]] = {split: [] for split in SPLITS if getattr(cut, split)}
    for table in tables:
        stop = 0
        for split, count in zip(SPLITS, cut.rows(table), strict=True):
            start, stop = stop, stop + count
            if split not in parts:
                continue
            if not count:
                raise DataError(
                    f"{table.name}: has {len(table)} rows, none of them for {split}; it is too short"
                )
            before = 0 if split == "train" else context
            if start < before:
                raise DataError(
                    f"{table.name}: has {len(table):,} rows, of which {start:,} come before the {split} split, fewer "
                    f"than --context {context}, which windows there begin in; give a longer series, or a smaller "
                    "--context (no less than data.lookback)"
                )
            parts[split].append(Part(table, start, stop, before))
    return parts


def write_split(
    folder: Path, split: Split, parts: Sequence[Part], scaler: Scaler, shard_samples: int
) -> SeriesManifest:
    """It writes the parts of all series into `folder/SPLIT/`. Raises DataError for values that cannot be scaled."""
    folder = folder / split
    with data_errors(folder):
        folder.mkdir()
    chunks = 0
    with ShardWriter(folder, "series", shard_samples) as shards:
        for part in parts:
            scaled_ND = scaled_rows(part.table, part.rows, scaler)
            for first in range(0, len(scaled_ND), CHUNK_ROWS):
                content = {FIELDS[0]: encoded(scaled_ND[first : first + CHUNK_ROWS])}
                shards.write(f"{split}-{chunks:09d}", content)
                chunks += 1
        manifest = SeriesManifest(
            split=split,
            documents=len(parts),
            samples=chunks,
            fields=FIELDS,
            shards=shards.finish(),
            channels=len(scaler.columns),
            columns=scaler.columns,
            chunk_rows=CHUNK_ROWS,
            context=parts[0].context,
            step_seconds=scaler.step_seconds,
            series=tuple(map(entry_of, parts)),
            scaler=scaler.entry,
        )
    path = folder / MANIFEST
    with data_errors(path):
        path.write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest


def entry_of(part: Part) -> SeriesEntry:
    """It returns what a manifest says of a part."""
    return SeriesEntry(
        name=Path(part.table.name).name,
        rows=part.stop - part.start + part.context,
        first_time=part.table.time(part.start),
        last_time=part.table.time(part.stop - 1),
    )


def scaled_rows(table: Table, rows: slice, scaler: Scaler) -> NDArray[np.float32]:
    """It scales rows (N, D). Raises DataError for one that is too far from the mean of its column."""
    with np.errstate(over="ignore"):
        scaled_ND = scaler.scaled(table.values_ND[rows])
    if (odd := ~(np.abs(scaled_ND) <= LARGEST_SCALED)).any():
        row, column = divmod(int(odd.argmax()), len(scaler.columns))
        row += rows.start
        raise DataError(
            f"{table.place(row, scaler.columns[column])}: {table.values_ND[row, column]:g} is more than "
            f"{LARGEST_SCALED:g} times the deviation of the train rows ({scaler.deviations[column]:g}) away from their "
            f"mean ({scaler.means[column]:g}), which no loss can hold; correct it, or prepare the data "
            "without the column (--columns)"
        )
    return scaled_ND


def encoded(scaled_ND: NDArray[np.float32]) -> bytes:
    """It returns the file that a chunk is stored as."""
    file = io.BytesIO()
    np.save(file, scaled_ND.astype("<f4"))
    return file.getvalue()
