"""Time series, cut into windows, are one kind of data.

R  rows of a window, D  channels
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import DataError
from data_pipeline.series.batch import SeriesBatch
from data_pipeline.series.collate import WindowCollator
from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.manifest import SeriesManifest
from data_pipeline.series.scaler import SCALER, Scaler, parse_scaler
from data_pipeline.series.windows import WindowDataset, Windows
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.storage import Folder
from data_pipeline.shown import shown
from data_pipeline.source import Source

DESCRIBED = 8
"""Columns of a window that are described."""


class SeriesSource(Source[SeriesManifest, SeriesConfig, SeriesBatch]):
    """It reads windows of series with the same columns, scaled alike."""

    manifest_type = SeriesManifest
    companion_files = (SCALER,)

    def open(self, folder: Folder, data: SeriesConfig) -> WindowDataset:
        """It opens a split, whose samples are windows."""
        return WindowDataset(folder, data)

    def facts(self, manifest: SeriesManifest) -> dict[str, Any]:
        """It returns the columns, their scaler and the step in time."""
        return {
            "columns": list(manifest.columns),
            "step_seconds": manifest.step_seconds,
            "scaler": manifest.scaler.sha256,
        }

    def choices(self, data: SeriesConfig) -> dict[str, Any]:
        """It returns the length of windows and the step between them."""
        return {"lookback": data.lookback, "horizon": data.horizon, "stride": data.stride}

    def check(self, dataset: Dataset[SeriesManifest], data: SeriesConfig) -> None:
        """It raises DataError when the series have other columns than the configuration says or are too short for its
        windows, and when another scaler lies beside the shards."""
        manifest = dataset.manifest
        if manifest.channels != data.channels:
            raise DataError(f"{dataset.name}: has {manifest.channels} columns; set data.channels to that")
        if manifest.split != "train" and data.lookback > manifest.context:
            raise DataError(
                f"{dataset.name}: has {manifest.context} rows of context, but data.lookback is {data.lookback}; set it "
                f"to {manifest.context} or less, or prepare the data again with --context {data.lookback}"
            )
        windows = Windows.of(manifest, data.lookback, data.horizon, data.stride)
        for entry, count in zip(manifest.series, windows.counts, strict=True):
            if not count:
                raise DataError(
                    f"{dataset.name}: has {entry.rows} rows of {shown(entry.name)}, too few for a window of "
                    f"{windows.rows} (data.lookback {data.lookback} + data.horizon {data.horizon}); set these lower, "
                    "or leave that series out"
                )
        folder = dataset.folder.parent()
        if folder.has(SCALER):
            _scaler_beside(dataset)

    def check_together(
        self, dataset: Dataset[SeriesManifest], other_name: str, other: SeriesManifest
    ) -> None:
        """It raises DataError when two datasets have different columns, or were scaled differently."""
        if dataset.manifest.columns == other.columns and dataset.manifest.scaler != other.scaler:
            raise DataError(
                f"{dataset.name}: was scaled by other means and deviations than {other_name}; prepare the files of "
                "both in one call of `surefoot prepare series`"
            )
        super().check_together(dataset, other_name, other)

    def collator(
        self, manifest: SeriesManifest, data: SeriesConfig
    ) -> Callable[[Sequence[Sample]], SeriesBatch]:
        """It returns what stacks windows."""
        return WindowCollator(data)

    def describer(self, dataset: Dataset[SeriesManifest]) -> Callable[[Sample], str]:
        """It returns what tells the range of some columns in a window, in original units if the scaler lies beside the
        dataset."""
        scaler = _scaler_beside(dataset) if dataset.folder.parent().has(SCALER) else None

        def describe(sample: Sample) -> str:
            window_RD = np.asarray(sample.fields[0])
            values_RD = scaler.original(window_RD) if scaler else window_RD
            columns = zip(dataset.manifest.columns, values_RD.T[:DESCRIBED].tolist(), strict=False)
            told = [f"{name} {min(values):.5g} to {max(values):.5g}" for name, values in columns]
            return f"{len(window_RD)} rows: {', '.join(told)}" + (
                ", ..." if window_RD.shape[1] > DESCRIBED else ""
            )

        return describe

    def companions(self, dataset: Dataset[SeriesManifest]) -> dict[str, bytes]:
        """It returns the scaler, if it lies beside the dataset; `check` has seen to it that it is its own."""
        folder = dataset.folder.parent()
        return {SCALER: folder.read(SCALER)} if folder.has(SCALER) else {}

    def shuffle_targets(self, batch: SeriesBatch, row: int, generator: torch.Generator) -> SeriesBatch:
        """It returns the batch with the steps in time of one row's targets permuted."""
        y_BDH = batch.y_BDH.clone()
        y_BDH[row] = y_BDH[row][:, torch.randperm(y_BDH.shape[2], generator=generator)]
        return replace(batch, y_BDH=y_BDH)

    def randomise(
        self, batch: SeriesBatch, manifest: SeriesManifest, row: int, generator: torch.Generator
    ) -> SeriesBatch:
        """It returns the batch with normal noise in one row, where it is read and where it is forecast."""
        x_BDL, y_BDH = batch.x_BDL.clone(), batch.y_BDH.clone()
        for rows in (x_BDL, y_BDH):
            rows[row] = torch.randn(rows[row].shape, generator=generator)
        return replace(batch, x_BDL=x_BDL, y_BDH=y_BDH)


def _scaler_beside(dataset: Dataset[SeriesManifest]) -> Scaler:
    """It returns the scaler that lies beside the shards. Raises DataError where it is not theirs."""
    folder, manifest = dataset.folder.parent(), dataset.manifest
    name, content = f"{folder.name}/{SCALER}", folder.read(SCALER)
    if (found := hashlib.sha256(content).hexdigest()) != manifest.scaler.sha256:
        raise DataError(
            f"{name}: not the scaler that {dataset.name} was made with: SHA-256 is {found}, the manifest says "
            f"{manifest.scaler.sha256}"
        )
    scaler = parse_scaler(content, name)
    if (scaler.columns, scaler.step_seconds) != (manifest.columns, manifest.step_seconds):
        raise DataError(
            f"{name}: is of other columns, or another step in time, than the manifest of {dataset.name}"
        )
    return scaler
