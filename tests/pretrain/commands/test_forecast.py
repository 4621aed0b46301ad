"""`surefoot forecast` and `evaluate`, with a linear model that has learned waves with some noise."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.distributed import run_distributed
from support.forecasting_model import HORIZON, LOOKBACK, forecasting_config
from support.runs import metrics, newest_checkpoint, run_to_end
from support.training import Layout

from data_pipeline.__main__ import main as prepare
from parallel.mesh import ParallelMesh
from pretrain.commands.__main__ import main
from pretrain.commands.forecast.plot import MATPLOTLIB
from pretrain.config.run import RunConfig
from pretrain.inference.forecast import intervals

START = datetime(2020, 2, 28)
COLUMNS = ("fast", "slow", "both")
ROWS = 700
NOISE = 0.5
STEPS = 150
Command = Callable[..., tuple[int, str, str]]


def waves(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Columns of amplitudes 5, 20 and 100, far from zero."""
    fast, slow = np.sin(rows / 2), np.sin(rows / 7)
    return np.stack((50 + 5 * fast, 20 * slow, 1000 + 50 * (fast + slow)), axis=1)


def write_rows(path: Path, rows: int, columns: tuple[str, ...] = COLUMNS, hours: float = 1) -> Path:
    """The waves with noise, the columns in any order, and one that no model knows."""
    noise = NOISE * np.random.default_rng(5).normal(size=(rows, 3)) * (1, 4, 20)
    values = dict(zip(COLUMNS, (waves(np.arange(rows)) + noise).T.tolist(), strict=True))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", *columns, "other"])
        for row in range(rows):
            numbers = [values.get(name, values["fast"])[row] for name in columns]
            writer.writerow([START + timedelta(hours=hours * row), *numbers, row])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, alone: ParallelMesh) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs")
    file = write_rows(folder / "waves.csv", ROWS)
    words = ["series", file, "--columns", *COLUMNS, "--splits", 0.6, 0.2, 0.2, "--context", LOOKBACK]
    assert prepare([*map(str, words), "--out", str(folder / "data")]) == 0
    base = forecasting_config(Layout(), {"kind": "linear"}).model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": STEPS},
        "data": {"sources": [{"path": str(folder / "data")}]},
        "optimizer": {"weight_decay": 0.0},
        "checkpoint": {"every_steps": STEPS},
        "evaluation": {"every_steps": STEPS},
        "journal": {"console": "none", "tensorboard": False},
    }
    config = RunConfig.model_validate(
        {**base, **{name: {**base[name], **new} for name, new in changes.items()}}
    )
    assert run_distributed(run_to_end, 1, config) == ["finished"]
    return folder / "test"


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], alone: ParallelMesh) -> Command:
    """It runs a command; returns its exit code, standard output and standard error."""

    def command(*words: object) -> tuple[int, str, str]:
        return main([*map(str, words)]), *capfd.readouterr()

    return command


def numbers_of(text: str) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Header, times and numbers of a forecast."""
    header, *rows = csv.reader(io.StringIO(text))
    return header, [row[0] for row in rows], np.array([[float(cell) for cell in row[1:]] for row in rows])


def test_what_follows_is_forecast_with_times_and_intervals(
    run: Path, command: Command, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "now.csv", 100, columns=("slow", "both", "fast"))
    code, found, told = command("forecast", run, file, "--level", 0.8)
    assert code == 0
    assert told.startswith(f"surefoot forecast: {newest_checkpoint(run.parent)} (certified)\n")
    assert "intervals of 80.0% from 133 windows of" in told
    header, times, numbers = numbers_of(found)
    assert header[:5] == ["date", "fast", "fast_lower", "fast_upper", "slow"]
    assert times == [str(START + timedelta(hours=100 + step)) for step in range(HORIZON)]
    truth_HD = waves(np.arange(100, 100 + HORIZON))
    values_HD, lower_HD, upper_HD = numbers[:, ::3], numbers[:, 1::3], numbers[:, 2::3]
    assert (np.abs(values_HD - truth_HD) < (3 * NOISE, 12 * NOISE, 60 * NOISE)).all()
    assert (lower_HD < values_HD).all()
    assert (values_HD < upper_HD).all()
    wide = (upper_HD - lower_HD).mean(0) / (2 * 1.28 * NOISE * np.array((1, 4, 20)))
    assert ((wide > 0.8) & (wide < 2)).all(), "noise alone is as wide as 1"


def test_without_intervals_no_validation_data_is_read(run: Path, command: Command, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "now.csv", 60)
    _, with_intervals, _ = command("forecast", run, file)
    out = tmp_path / "forecast.csv"
    code, found, told = command("forecast", run, file, "--level", 0, "--out", out, "--data", "nothing/here")
    assert (code, found, told.count("\n")) == (0, "", 1)
    header, times, numbers = numbers_of(out.read_text())
    assert header == ["date", *COLUMNS]
    _, same, all_numbers = numbers_of(with_intervals)
    assert times == same
    assert (numbers == all_numbers[:, ::3]).all()
    code, _, told = command(
        "forecast", run, file, "--level", 0, "--out", run.parent / "data" / "forecast.csv"
    )
    assert (code, "forecast.csv: lies in " in told) == (2, True), "prepared data is no place for it"


def test_of_many_windows_some_are_taken(
    run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 133, in 12 steps of 12, every fifth, across all batches: for each 3 columns and 8 steps in time are kept."""
    monkeypatch.setattr("pretrain.commands.forecast.run.LARGEST_RESIDUALS", 12 * 12 * 3 * 8 // 5 + 1)
    code, _, told = command("forecast", run, write_rows(tmp_path / "now.csv", 60))
    assert code == 0
    assert "from 27 windows of" in told


def test_rows_without_times_are_counted_on(run: Path, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    lines = write_rows(tmp_path / "now.csv", 40).read_text().splitlines()
    file.write_text("".join(line.partition(",")[2] + "\n" for line in lines))
    code, found, _ = command("forecast", run, file, "--no-times", "--level", 0)
    header, times, _ = numbers_of(found)
    assert (code, header[0], times) == (0, "row", [str(40 + step) for step in range(HORIZON)])


@pytest.mark.parametrize(
    ("rows", "settings", "code", "words"),
    [
        (LOOKBACK - 1, {}, 3, f"now.csv: has 23 rows, and the model reads {LOOKBACK}"),
        (60, {"hours": 0.25}, 3, "now.csv: rows are 900 s apart, and 3600 s in the data of the model"),
        (60, {"columns": ("fast", "slow")}, 3, "both"),
    ],
)
def test_what_is_no_series_for_the_model_is_told(
    rows: int, settings: dict[str, Any], code: int, words: str, run: Path, command: Command, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "now.csv", rows, **settings)
    ended, found, told = command("forecast", run, file)
    assert (ended, found) == (code, "")
    assert words in told


def test_a_column_that_stands_twice_is_refused(run: Path, command: Command, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "now.csv", 60, columns=(*COLUMNS, "fast"))
    code, found, told = command("forecast", run, file)
    assert (code, found) == (3, "")
    assert "has two columns 'fast'" in told


def test_a_column_of_the_model_cannot_be_that_of_times(run: Path, command: Command, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "now.csv", 60)
    code, found, told = command("forecast", run, file, "--time-column", "slow")
    assert (code, found) == (3, "")
    assert "column 'slow' is that of times, so it cannot hold values as well; --time-column names" in told
    assert "--columns" not in told  # that is an option of `prepare` alone


@pytest.mark.parametrize("value", ["1e30", "1e90"])
def test_values_that_no_model_can_read_are_named(
    value: str, run: Path, command: Command, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "now.csv", 60)
    *rows, last = file.read_text().splitlines()
    time, _, *others = last.split(",")
    file.write_text("\n".join([*rows, ",".join([time, value, *others])]))
    code, found, told = command("forecast", run, file)
    assert (code, found) == (3, "")
    assert "line 61, column 'fast': 1e+" in told
    assert "Warning" not in told


def test_times_end_with_the_year_9999(run: Path, command: Command, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "now.csv", 60)
    file.write_text(file.read_text().replace("2020-02-28", "9999-12-29").replace("2020-02-29", "9999-12-30"))
    file.write_text(file.read_text().replace("2020-03-01", "9999-12-31"))
    code, _, told = command("forecast", run, file, "--level", 0)
    assert code == 0, told
    file.write_text(
        "\n".join(file.read_text().splitlines() + [f"9999-12-31 {h}:00:00,1,1,1,1" for h in range(12, 24)])
    )
    code, found, told = command("forecast", run, file, "--level", 0)
    assert (code, found) == (3, "")
    assert "the forecast ends behind the year 9999" in told


def test_damaged_validation_data_is_named(run: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "data" / "validation", tmp_path / "data")
    (shard,) = (tmp_path / "data").glob("*.tar")
    with shard.open("r+b") as file:
        file.seek(600)
        file.write(b"rotten")
    code, found, told = command(
        "forecast", run, write_rows(tmp_path / "now.csv", 60), "--data", tmp_path / "data"
    )
    assert (code, found) == (3, "")
    assert f"damaged sample left out: {tmp_path}/data/{shard.name}" in told
    assert "more than data.damaged_sample_budget = 0 of the run allows" in told


def test_the_test_split_is_evaluated_in_the_units_of_the_series(run: Path, command: Command) -> None:
    code, found, _ = command("evaluate", run, "--data", run.parent / "data" / "test", "--json")
    facts = json.loads(found)
    assert code == 0
    assert facts["targets"] == ROWS // 5 - HORIZON + 1
    assert facts["loss"] < 0.2
    squares = NOISE**2 * np.mean([1, 16, 400])
    assert squares < facts["mse_original"] < 3 * squares
    assert facts["mae"] < facts["mae_original"]
    validated = metrics(run.parent, "validation_mae_original")[STEPS]
    _, own, _ = command("evaluate", run, "--json")
    assert json.loads(own)["mae_original"] == pytest.approx(validated, rel=1e-5)


def test_intervals_of_the_earlier_half_are_tried_on_the_later() -> None:
    """Residuals 0 to 99, then twice as far: of those half lie between the quantiles."""
    earlier = np.arange(-50, 50, dtype=np.float32)
    found = intervals(np.concatenate((earlier, 2 * earlier))[:, None, None], 0.9)
    assert found.coverage == pytest.approx(0.45, abs=0.02)
    assert found.upper_HD[0, 0] == pytest.approx(80, abs=3)


def test_a_plot_is_drawn_or_it_is_said_what_to_do(run: Path, command: Command, tmp_path: Path) -> None:
    file, plot = write_rows(tmp_path / "now.csv", 60), tmp_path / "plot.png"
    code, _, told = command("forecast", run, file, "--plot", plot)
    if MATPLOTLIB.usable:
        assert code == 0
        assert plot.read_bytes().startswith(b"\x89PNG")
    else:
        assert code == 2
        assert "matplotlib, which draws, is not installed; pip install 'surefoot[plots]'" in told
