"""Windows are what slicing the file gives, each once an epoch, under any number of ranks and wherever a run goes on."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.series import COLUMNS, series_config, series_values, window_starts, write_series

from data_pipeline.__main__ import main
from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.series.batch import SeriesBatch
from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.manifest import SeriesManifest
from data_pipeline.series.scaler import Scaler, parse_scaler
from data_pipeline.series.source import SeriesSource
from data_pipeline.series.splits import Shares
from data_pipeline.series.windows import WindowDataset, Windows
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.shards.storage import LocalFolder

ROWS = (900, 400)
LENGTH = 24
TRAIN = (630, 280)
"""Rows of the train split of each series, from 0."""
WINDOWS = sum(rows - LENGTH + 1 for rows in TRAIN)
STEP = 24

Stream = BatchStream[SeriesManifest, SeriesBatch]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("series") / "data", *ROWS)


@pytest.fixture(scope="module")
def scaler(data: Path) -> Scaler:
    return parse_scaler((data / "scaler.json").read_bytes())


def open_stream(plan: SeriesConfig, rank: int = 0, size: int = 1) -> Stream:
    return BatchStream(SeriesSource(), plan, seed=3, data_rank=rank, data_size=size)


def held_out(plan: SeriesConfig, rank: int = 0, size: int = 1) -> ValidationSet:
    return ValidationSet(SeriesSource(), plan, samples=None, data_rank=rank, data_size=size)


def starts(step: list[SeriesBatch], scaler: Scaler) -> list[int]:
    return window_starts(step, scaler.means[0], scaler.deviations[0])


def sliced(row: int, scaler: Scaler) -> tuple[np.ndarray, np.ndarray]:
    """The window (D, L) and (D, H) that begins with a row, in float64, straight from the values."""
    series, first = divmod(row, 10_000)
    rows_RD = series_values(ROWS[series], series)[first : first + LENGTH]
    scaled_DR = ((rows_RD - np.array(scaler.means)) / np.array(scaler.deviations)).T
    return scaled_DR[:, :16], scaled_DR[:, 16:]


def assert_sliced(batch: SeriesBatch, scaler: Scaler) -> None:
    for number, row in enumerate(starts([batch], scaler)):
        if row >= 0:
            x_DL, y_DH = sliced(row, scaler)
            np.testing.assert_array_equal(batch.x_BDL[number], x_DL.astype(np.float32))
            np.testing.assert_array_equal(batch.y_BDH[number], y_DH.astype(np.float32))


def steps_from(
    plan: SeriesConfig, state: Any, size: int, steps: int
) -> Iterator[tuple[list[SeriesBatch], Any]]:
    """The micro-batches of all ranks of each step, and the state behind it."""
    with ExitStack() as stack:
        ranks = [stack.enter_context(closing(open_stream(plan, rank, size))) for rank in range(size)]
        for stream in ranks:
            if state is not None:
                stream.seek(state)
        for _ in range(steps):
            batches = [batch for stream in ranks for batch in next(stream)]
            states = [stream.state() for stream in ranks]
            assert all(state == states[0] for state in states)
            yield batches, states[0]


layouts = st.sampled_from([(1, 1), (1, 4), (2, 12), (3, 4), (6, 4), (12, 1)])


@settings(max_examples=5, deadline=None)
@given(parts=st.lists(st.tuples(layouts, st.integers(1, 20)), min_size=1, max_size=3))
def test_every_window_once_an_epoch_under_any_ranks_and_resume_points(
    data: Path, scaler: Scaler, parts: list[tuple[tuple[int, int], int]]
) -> None:
    """Each part of the run goes on with other ranks and micro-batches from the state of the last."""
    steps = -(-2 * WINDOWS // STEP)
    seen: list[list[int]] = []
    state: Any = None
    for (size, micro), count in [*parts, ((1, 4), steps)]:
        plan = series_config(data, micro_batch_size=micro)
        for batches, behind in steps_from(plan, state, size, min(count, steps - len(seen))):
            seen.append(sorted(starts(batches, scaler)))
            state = behind
    one = [sorted(starts(batches, scaler)) for batches, _ in steps_from(series_config(data), None, 1, steps)]
    assert seen == one, "the windows of a step follow from its position alone"
    expected = [10_000 * n + row for n, rows in enumerate(TRAIN) for row in range(rows - LENGTH + 1)]
    read = sorted(row for step in seen for row in step)
    assert {*read} == {*expected}, "none across series or splits"
    assert all(read.count(row) >= 2 for row in expected[::97])


def test_windows_are_what_slicing_the_file_gives(data: Path, scaler: Scaler) -> None:
    with closing(open_stream(series_config(data))) as stream:
        for batch in (batch for _ in range(8) for batch in next(stream)):
            assert batch.x_BDL.shape == (4, 3, 16)
            assert batch.y_BDH.shape == (4, 3, 8)
            assert batch.x_BDL.dtype == batch.y_BDH.dtype == torch.float32
            assert (batch.tokens, batch.samples, batch.target_weight) == (64, 4, 4.0)
            assert_sliced(batch, scaler)


def test_the_scaler_is_that_of_the_train_rows(scaler: Scaler) -> None:
    """numpy's, over both series, in float64."""
    rows_ND = np.concatenate([series_values(ROWS[n], n)[: TRAIN[n]] for n in range(2)])
    np.testing.assert_allclose(scaler.means, rows_ND.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(scaler.deviations, rows_ND.std(0), rtol=1e-12)
    assert scaler.columns == COLUMNS
    assert scaler.step_seconds == 3600.0


@pytest.mark.parametrize("lookback", [1, 16, 20])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_windows_forecast_each_place_of_their_split_whatever_they_read(
    data: Path, scaler: Scaler, lookback: int, split: str
) -> None:
    plan = series_config(data, lookback=lookback, stride=5, validation=[{"path": f"{data}/{split}"}])
    seen: list[int] = []
    for rank in range(3):
        with closing(held_out(plan, rank, 3)) as validation:
            seen += [row for step in validation for row in starts(step, scaler) if row >= 0]
    begin = {"validation": (630, 280), "test": (720, 320)}[split]
    stop = {"validation": (720, 320), "test": (900, 400)}[split]
    targets = [10_000 * n + t for n in range(2) for t in range(begin[n], stop[n] - 8 + 1)]
    assert sorted(row + lookback for row in seen) == targets


def test_a_stride_leaves_training_windows_out(data: Path, scaler: Scaler) -> None:
    plan = series_config(data, stride=7, shuffle=False)
    with closing(open_stream(plan)) as stream:
        rows = [row for _ in range(6) for row in starts(next(stream), scaler)]
    first, second = ([*range(0, rows - LENGTH + 1, 7)] for rows in TRAIN)
    expected = [*first, *(10_000 + row for row in second)]
    assert rows[: len(expected)] == expected


@pytest.mark.parametrize("changed", [{"stride": 2}, {"lookback": 15, "horizon": 9}])
def test_a_position_is_of_use_with_the_same_windows_alone(data: Path, changed: dict[str, int]) -> None:
    with closing(open_stream(series_config(data))) as stream:
        state = stream.state()
    with (
        closing(open_stream(series_config(data, **changed))) as stream,
        pytest.raises(DataError, match=r"the data differs in (stride|horizon): it was"),
    ):
        stream.seek(state)


def test_windows_that_are_skipped_do_not_come_again(data: Path, scaler: Scaler) -> None:
    with closing(open_stream(series_config(data))) as stream:
        plain = [starts(next(stream), scaler) for _ in range(3)]
        excerpt = next(stream.excerpts([0]))
    with closing(open_stream(series_config(data))) as stream:
        stream.skip([(STEP, 2 * STEP)])
        steps = [starts(next(stream), scaler) for _ in range(2 * WINDOWS // STEP)]
    assert steps[:2] == [plain[0], plain[2]]
    assert not {row for step in steps for row in step} & {*plain[1]}
    series, first = divmod(plain[0][0], 10_000)
    assert (excerpt.shard, excerpt.sample) == (f"data-{series}.csv", first)
    assert excerpt.text.startswith(f"24 rows: row {plain[0][0]} to {plain[0][0] + 23}, wave ")


def test_a_damaged_chunk_masks_the_windows_over_it_and_no_others(tmp_path: Path) -> None:
    data = write_series(tmp_path / "data", 900, shares=Shares(1, 0, 0))
    scaler = parse_scaler((data / "scaler.json").read_bytes())
    shard = data / "train/series-000000.tar"
    content = bytearray(shard.read_bytes())
    content[-3000] ^= 1  # of the second chunk: rows 256 to 511
    shard.write_bytes(content)
    plan = series_config(data, shuffle=False, global_batch_size=4)
    with closing(open_stream(plan)) as stream:
        batches = [batch for _ in range((900 - LENGTH + 1) // 4) for batch in next(stream)]
    seen = starts(batches, scaler)
    assert [row for row, found in enumerate(seen) if found == -1] == [*range(256 - LENGTH + 1, 512)]
    masked = [batch for batch in batches if batch.damaged]
    assert sum(len(batch.damaged) for batch in masked) == 512 - 256 + LENGTH - 1
    assert "series-000000.tar: sample 1 at byte" in masked[0].damaged[0]
    assert "checksum mismatch; window from row 233" in masked[0].damaged[0]
    assert sum(batch.target_weight for batch in batches) == sum(row >= 0 for row in seen)
    assert not batches[90].x_BDL.any()
    assert not batches[90].y_BDH.any()
    for batch in batches:
        assert_sliced(batch, scaler)


def test_a_mixture_is_of_data_that_is_scaled_alike(data: Path, tmp_path: Path, scaler: Scaler) -> None:
    plan = series_config(data, data, weights=(3, 1))
    with closing(open_stream(plan)) as stream:
        assert all(row >= 0 for row in starts(next(stream), scaler))
    other = write_series(tmp_path / "other", 300)
    with pytest.raises(DataError, match=r"other/train: was scaled by other means .* in one call"):
        open_stream(series_config(data, other))


REFUSED = {
    "channels": ({"channels": 4}, r"train: has 3 columns; set data\.channels to that"),
    "too long": (
        {"lookback": 200, "horizon": 81},
        r"train: has 280 rows of data-1\.csv, too few for a window of 281 \(data\.lookback 200 \+ data\.horizon 81\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_windows_that_do_not_fit_are_refused(data: Path, case: str) -> None:
    changed, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        open_stream(series_config(data, **changed))


def test_held_out_windows_read_no_more_than_the_context(data: Path) -> None:
    with pytest.raises(
        DataError, match=r"validation: has 20 rows of context, but data\.lookback is 21; .* --context 21"
    ):
        held_out(series_config(data, lookback=21))


def test_a_held_out_split_is_not_trained_on(data: Path) -> None:
    with pytest.raises(DataError, match=r"test/manifest\.json: this is a test split"):
        open_stream(series_config(data / "test"))


def test_a_model_is_evaluated_on_the_test_split_by_its_name(data: Path) -> None:
    """As `surefoot evaluate RUN --data DIR/test` opens it."""
    folder = data / "test"
    with closing(held_out(series_config(folder, validation=[{"path": str(folder)}]))) as validation:
        assert sum(batch.target_weight for step in validation for batch in step) == (180 - 7) + (80 - 7)
        assert validation.companions["scaler.json"] == (data / "scaler.json").read_bytes()


HOSTILE = {
    "another": lambda scaler: {**scaler, "means": [0.0, 0.0, 0.0]},
    "zero": lambda scaler: {**scaler, "deviations": [0.0, 1.0, 1.0]},
    "infinite": lambda scaler: {**scaler, "means": [float("inf"), 0.0, 0.0]},
    "short": lambda scaler: {**scaler, "means": [0.0]},
    "unknown key": lambda scaler: {**scaler, "more": 1},
    "other columns": lambda scaler: {**scaler, "columns": ["a", "b", "c"]},
    "no object": lambda scaler: [scaler],
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("stated", [False, True])
def test_a_scaler_that_is_not_that_of_the_shards_is_refused(tmp_path: Path, case: str, stated: bool) -> None:
    """Also where the manifest says that it is: it must be a scaler of these columns."""
    data = write_series(tmp_path / "data", 100)
    odd = json.dumps(HOSTILE[case](json.loads((data / "scaler.json").read_text()))).encode()
    (data / "scaler.json").write_bytes(odd)
    path = data / "train/manifest.json"
    if stated:
        facts = {
            **json.loads(path.read_text()),
            "scaler": {"file": "scaler.json", "sha256": hashlib.sha256(odd).hexdigest()},
        }
        del facts["fingerprint"]
        facts["fingerprint"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(facts))
    if stated and case == "another":
        open_stream(series_config(data)).close()
        return
    with pytest.raises(DataError, match=r"scaler\.json: " if stated else r"scaler\.json: not the scaler"):
        open_stream(series_config(data))


def test_planted_faults_spoil_one_row(data: Path) -> None:
    with closing(open_stream(series_config(data))) as stream:
        batch, generator = next(stream)[0], torch.Generator().manual_seed(1)
        source, manifest = SeriesSource(), stream.manifest
    shuffled = source.shuffle_targets(batch, 1, generator)
    assert torch.equal(shuffled.y_BDH[1].sort(-1)[0], batch.y_BDH[1].sort(-1)[0])
    assert not torch.equal(shuffled.y_BDH[1], batch.y_BDH[1])
    noise = source.randomise(batch, manifest, 1, generator)
    for odd in (shuffled, noise):
        assert torch.equal(odd.x_BDL[[0, 2, 3]], batch.x_BDL[[0, 2, 3]])
        assert torch.equal(odd.y_BDH[[0, 2, 3]], batch.y_BDH[[0, 2, 3]])
    assert not torch.equal(noise.x_BDL[1], batch.x_BDL[1])


def test_etth1_has_the_windows_of_the_published_results(tmp_path: Path) -> None:
    root = Path(os.environ.get("SUREFOOT_DATA", Path(__file__).parents[4] / "shared/data"))
    file = root / "series/ETTh1.csv"
    if not file.exists():
        pytest.skip("SUREFOOT_DATA does not name a folder with series")
    assert main(["series", str(file), "--out", str(tmp_path / "data"), "--split-months", "12", "4", "4"]) == 0
    scaler = parse_scaler((tmp_path / "data/scaler.json").read_bytes())
    raw = np.loadtxt(file, delimiter=",", skiprows=1, usecols=range(1, 8))
    np.testing.assert_allclose(scaler.means, raw[:8640].mean(0), rtol=1e-12)
    np.testing.assert_allclose(scaler.deviations, raw[:8640].std(0), rtol=1e-12)
    for split, begin, rows in (
        ("train", 0, 8640),
        ("validation", 8640 - 512, 2880),
        ("test", 11520 - 512, 2880),
    ):
        folder = LocalFolder(tmp_path / "data" / split)
        manifest = read_manifest(folder, SeriesManifest)
        for horizon in (96, 192, 336, 720):
            expected = rows - horizon + 1 - (512 if split == "train" else 0)
            assert Windows.of(manifest, 512, horizon).counts == (expected,)
        plan = series_config(tmp_path / "data", channels=7, lookback=512, horizon=96)
        with closing(WindowDataset(folder, plan)) as dataset:
            for number in (0, 1, 1000, len(dataset) - 1):
                window_RD = np.asarray(dataset.read(number).fields[0])
                rows_RD = raw[begin + number : begin + number + 608]
                np.testing.assert_array_equal(window_RD, scaler.scaled(rows_RD))
                np.testing.assert_allclose(scaler.original(window_RD), rows_RD, atol=1e-5)
