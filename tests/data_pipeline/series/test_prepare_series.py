"""Time series are prepared as they stand, or refused with the line and the column that is wrong."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.series import series_values, write_csv

from data_pipeline.__main__ import main
from data_pipeline.errors import DataError
from data_pipeline.series.manifest import SeriesManifest
from data_pipeline.series.scaler import constant_columns, fitted, parse_scaler
from data_pipeline.series.table import TableForm, read_table
from data_pipeline.series.windows import STORED
from data_pipeline.shards.arrays import parsed_array
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.storage import LocalFolder

HEADER = "date,a,b\n"


def hours(count: int) -> list[str]:
    return [f"2016-07-01 {hour:02d}:00:00,{hour / 2},{hour * hour}" for hour in range(count)]


def text(rows: list[str], header: str = HEADER) -> str:
    return header + "".join(f"{row}\n" for row in rows)


def replaced(line: int, row: str) -> str:
    """Twenty hours, with another row on a line of the file."""
    rows = hours(20)
    rows[line - 2] = row
    return text(rows)


def prepare(folder: Path, *words: str, content: str | bytes | None = None) -> int:
    """It prepares `folder/x.csv` with a context of 4 rows."""
    if content is not None:
        (folder / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return main(["series", f"{folder}/x.csv", "--out", f"{folder}/out", "--context", "4", *words])


def stored(folder: Path, split: str) -> np.ndarray:
    """The rows of a split, as any reader of `.npy` has them."""
    dataset = Dataset(LocalFolder(folder / split), SeriesManifest)
    chunks = []
    for number in range(len(dataset)):
        rows = min(dataset.manifest.rows - 256 * number, 256)
        content = bytes(dataset.read(number).fields[0])
        chunks.append(parsed_array(content, STORED, (rows, dataset.manifest.channels)))
    dataset.close()
    return np.concatenate(chunks)


LINE = r"x\.csv, line {}"
BAD: dict[str, tuple[str | bytes, str]] = {
    "empty value": (
        replaced(5, "2016-07-01 03:00:00,1.5,"),
        r"line 5, column 'b': the value is missing \(''\); .*--columns",
    ),
    "nan": (replaced(5, "2016-07-01 03:00:00,NaN,1"), r"line 5, column 'a': the value is missing \('NaN'\)"),
    "na": (replaced(5, "2016-07-01 03:00:00,1,na"), r"line 5, column 'b': the value is missing \('na'\)"),
    "text": (replaced(6, "2016-07-01 04:00:00,high,1"), r"line 6, column 'a': 'high' is no finite number"),
    "infinite": (
        replaced(6, "2016-07-01 04:00:00,1,-inf"),
        r"line 6, column 'b': '-inf' is no finite number",
    ),
    "underscores": (
        replaced(6, "2016-07-01 04:00:00,1_000,1"),
        r"line 6, column 'a': '1_000' is no finite number",
    ),
    "other digits": (
        replaced(6, "2016-07-01 04:00:00,\u0661,1"),
        r"line 6, column 'a': '\u0661' is no finite number",
    ),
    "hexadecimal": (
        replaced(6, "2016-07-01 04:00:00,0x1p3,1"),
        r"line 6, column 'a': '0x1p3' is no finite number",
    ),
    "two points": (
        replaced(6, "2016-07-01 04:00:00,1.2.3,1"),
        r"line 6, column 'a': '1\.2\.3' is no finite number",
    ),
    "beyond float64": (
        replaced(6, "2016-07-01 04:00:00,1e999,1"),
        r"line 6, column 'a': inf is beyond 1e\+100",
    ),
    "huge": (
        replaced(6, "2016-07-01 04:00:00,1,-1e101"),
        r"line 6, column 'b': -1e\+101 is beyond 1e\+100, .* larger unit",
    ),
    "ragged": (replaced(6, "2016-07-01 04:00:00,1"), r"line 6: has 2 values, but the header has 3 columns"),
    "decimal comma": (replaced(6, "2016-07-01 04:00:00,1,5,2"), r"line 6: has 4 values, .* decimal point"),
    "quoted decimal comma": (
        replaced(6, '2016-07-01 04:00:00,"1,5",2'),
        r"line 6, column 'a': '1,5' is no finite number",
    ),
    "open quote": (replaced(6, '2016-07-01 04:00:00,"1,2'), r"line 6: .*(unexpected end|quot)"),
    "blank line": (replaced(6, ""), r"line 6: is blank, and rows follow"),
    "a step missing": (
        text(hours(20)[:9] + hours(20)[10:]),
        r"line 11, column 'date': 2016-07-01 10:00:00 comes 2:00:00 after the row before, but most rows are 1:00:00 "
        r"apart; nothing is resampled or filled in here: .*--uneven",
    ),
    "the first step": (
        replaced(2, "2016-06-30 23:00:00,1,1"),
        r"line 3, .* comes 2:00:00 after .* are 1:00:00 apart",
    ),
    "a time twice": (
        replaced(7, "2016-07-01 04:00:00,1,1"),
        r"line 7, column 'date': 2016-07-01 04:00:00 is the same time as that of line 6; .* repeat an hour in autumn",
    ),
    "a time that goes back": (
        replaced(7, "2016-06-01 04:00:00,1,1"),
        r"line 7, .* is an earlier time than that of line 6",
    ),
    "no time": (
        replaced(7, "yesterday,1,1"),
        r"line 7, column 'date': 'yesterday' is no time; write 2016-07-01 02:00:00 or",
    ),
    "an ambiguous time": (
        replaced(7, "07/01/2016 05:00,1,1"),
        r"line 7, column 'date': '07/01/2016 05:00' is no time",
    ),
    "an offset, once": (
        replaced(7, "2016-07-01 05:00:00+02:00,1,1"),
        r"line 7, .* has an offset from UTC, other than",
    ),
    "no times": ("a,b\n1,2\n3,4\n", r"line 2, column 'a': '1' is no time; .*--no-times"),
    "no header": (
        text(hours(20), ""),
        r"line 1: has '2016-07-01 00:00:00' where the name of a column belongs",
    ),
    "semicolons": (
        text([row.replace(",", ";") for row in hours(20)], "date;a;b\n"),
        r"line 1: has ';' between its columns",
    ),
    "tabs": (
        text([row.replace(",", "\t") for row in hours(20)], "date\ta\tb\n"),
        r"line 1: has '\\t' between its columns",
    ),
    "times alone": (
        text([row[:19] for row in hours(20)], "date\n"),
        r"line 1: has no column beside that of times",
    ),
    "a column without a name": (text(hours(20), "date,a,\n"), r"line 1: column 3 has no name"),
    "two columns of a name": (text(hours(20), "date,a,a\n"), r"line 1: has two columns 'a'"),
    "UTF-16": (text(hours(20)).encode("utf-16"), r"line 1: holds NUL bytes, .*UTF-16"),
    "Latin-1": (text(hours(20), "date,\xb0C,b\n").encode("latin-1"), r"line 1: not UTF-8"),
    "binary": (b"\x89PNG\0\0", r"line 1: holds NUL bytes"),
    "nothing": ("", r"x\.csv: has no header in its first line"),
    "no rows": (HEADER, r"x\.csv: has 0 rows below its header"),
    "a row": (text(hours(1)), r"x\.csv: has 1 rows below its header"),
    "constant": (
        text([f"{row[:19]},{0.1},{number}" for number, row in enumerate(hours(20))]),
        r"x\.csv, lines 2 to 15, column 'a': is 0\.1 in all rows of train, so its deviation is 0; .*--keep-constant",
    ),
    "short": (
        text(hours(5)),
        r"x\.csv: has 5 rows, of which 3 come before the validation split, fewer than --context 4",
    ),
    "a split without rows": (
        text(hours(4)),
        r"x\.csv: has 4 rows, .*(none of them for test|fewer than --context)",
    ),
    "far away": (
        text([f"{row[:19]},{n * 1e-60},{1e60 if n == 18 else n}" for n, row in enumerate(hours(20))]).replace(
            "2016-07-01 19:00:00,1.9e-59", "2016-07-01 19:00:00,1"
        ),
        r"line (20|21), column '[ab]': .* is more than 1e\+18 times the deviation of the train rows",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_series_is_refused_with_its_place(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD[case]
    assert prepare(tmp_path, content=content) == 3
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        raise AssertionError(capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"], "nothing is left behind"


GOOD: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "plain": (text(hours(20)).encode(), ()),
    "CRLF": (text(hours(20)).replace("\n", "\r\n").encode(), ()),
    "a byte order mark": (text(hours(20)).encode("utf-8-sig"), ()),
    "no end of line, quotes, blanks": (
        text([f'"{row[:19]}", {row[20:].replace(",", " , ")}' for row in hours(20)], '"date","a", b\n')
        .strip()
        .encode(),
        (),
    ),
    "blank lines at the end": ((text(hours(20)) + "\n\n").encode(), ()),
    "T and Z": (text([row.replace(" ", "T").replace(",", "Z,", 1) for row in hours(20)]).encode(), ()),
    "raw Weather": (text([f"01.07.2016 {row[11:]}" for row in hours(20)]).encode(), ()),
    "Exchange": (text([f"2016/7/1 {int(row[11:13])}:00{row[19:]}" for row in hours(20)]).encode(), ()),
    "no times": (text([row[20:] for row in hours(20)], "a,b\n").encode(), ("--no-times",)),
    "times in the middle": (
        text(
            [",".join((row.split(",")[1], row[:19], row.split(",")[2])) for row in hours(20)], "a,t,b\n"
        ).encode(),
        ("--time-column", "t"),
    ),
    "columns among others": (
        text([f"{row},text" for row in hours(20)], "date,a,b,note\n").encode(),
        ("--columns", "a", "b"),
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_the_same_rows_in_other_dress_are_stored_alike(tmp_path: Path, case: str) -> None:
    content, words = GOOD[case]
    assert prepare(tmp_path, *words, content=content) == 0
    rows_ND = np.array([[hour / 2, hour * hour] for hour in range(20)])
    scaled_ND = (rows_ND - rows_ND[:14].mean(0)) / rows_ND[:14].std(0)
    for split, rows in (("train", slice(0, 14)), ("validation", slice(10, 16)), ("test", slice(12, 20))):
        np.testing.assert_allclose(stored(tmp_path / "out", split), scaled_ND[rows], rtol=1e-6, atol=1e-7)
    manifest = json.loads((tmp_path / "out/test/manifest.json").read_text())
    assert manifest["columns"] == ["a", "b"]
    assert (manifest["context"], manifest["series"][0]["rows"], manifest["series"][0]["name"]) == (
        4,
        8,
        "x.csv",
    )
    if case != "no times":
        assert manifest["step_seconds"] == 3600.0
        assert manifest["series"][0]["first_time"].startswith("2016-07-01 16:00:00")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard.compress)],
)
def test_packed_files_are_read_as_what_is_in_them(tmp_path: Path, suffix: str, pack) -> None:
    path = tmp_path / f"x.csv{suffix}"
    path.write_bytes(pack(text(hours(20)).encode()))
    table = read_table(str(path), TableForm())
    assert (len(table), table.columns, table.time(3)) == (20, ("a", "b"), "2016-07-01 03:00:00")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"damaged or cut"):
        read_table(str(path), TableForm())


def test_times_with_an_offset_are_compared_in_utc(tmp_path: Path) -> None:
    """An hour that local clocks have twice is two hours."""
    path = tmp_path / "x.csv"
    path.write_text(
        "t,a\n2016-10-30T02:00:00+02:00,1\n2016-10-30T02:00:00+01:00,2\n2016-10-30T03:00:00+01:00,3\n"
    )
    table = read_table(str(path), TableForm())
    assert table.step_seconds == 3600.0
    assert table.time(0) == "2016-10-30 00:00:00+00:00"


def test_uneven_rows_are_taken_and_counted_where_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, "--uneven", content=text(hours(22)[:9] + hours(22)[10:])) == 0
    assert "after another step in time than most: 1 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/scaler.json").read_text())["step_seconds"] is None


def test_constant_columns_are_kept_where_that_is_said(tmp_path: Path) -> None:
    rows = [f"{row[:19]},{0.1},{number}" for number, row in enumerate(hours(20))]
    assert prepare(tmp_path, "--keep-constant", content=text(rows)) == 0
    assert parse_scaler((tmp_path / "out/scaler.json").read_bytes()).deviations[0] == 1.0
    assert np.abs(stored(tmp_path / "out", "train")[:, 0]).max() < 1e-12


@given(st.floats(-1e100, 1e100), st.floats(-1e100, 1e100), st.integers(1, 60))
def test_a_scaler_is_finite_whatever_the_numbers(one: float, other: float, count: int) -> None:
    rows_ND = np.array([[one]] * count + [[other]])
    scaler = fitted(["a"], [rows_ND], None)
    assert parse_scaler(scaler.content) == scaler
    if not constant_columns([rows_ND])[0]:
        assert np.abs(scaler.scaled(rows_ND)).max() <= 1.001 * np.sqrt(count + 1)


def test_months_are_of_30_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "x.csv", series_values(3000))
    assert prepare(tmp_path, "--split-months", "2", "1", "1") == 0
    manifests = [
        json.loads((tmp_path / f"out/{split}/manifest.json").read_text())
        for split in ("train", "validation", "test")
    ]
    assert [manifest["series"][0]["rows"] for manifest in manifests] == [1440, 4 + 720, 4 + 720]
    out = capsys.readouterr().out
    assert "read 3,000 rows of 3 columns, 1:00:00 apart, from 1 files" in out
    assert "in none: 120 rows" in out
    assert "train: 1,440 rows of 1 series, 2016-07-01 00:00:00 to 2016-08-29 23:00:00" in out
    assert "forecast: 833 of 96, 737 of 192, 593 of 336, 209 of 720" in out
    assert prepare(tmp_path, "--split-months", "4", "1", "1", "--overwrite") == 3
    assert "has 3,000 rows, but 4 + 1 + 1 months of 30 days have 4,320" in capsys.readouterr().err
    assert prepare(tmp_path, "--split-months", "2", "1", "1") == 0, "what was there is still there"


def test_all_series_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "x.csv", series_values(40))
    other = tmp_path / "y.csv"
    words = ["series", f"{tmp_path}/x.csv", str(other), "--out", f"{tmp_path}/out", "--context", "4"]
    other.write_text(text(hours(20)))
    assert main(words) == 3
    assert "y.csv: has 2 columns (a, b), but" in capsys.readouterr().err
    rows = [f"2016-07-{day:02d},{day},{day % 3},{day % 5}" for day in range(1, 29)]
    other.write_text(text(rows, "date,row,wave,noise\n"))
    assert main(words) == 3
    assert "its step in time is 86400 s, but that of" in capsys.readouterr().err
    assert main([*words[:2], f"{tmp_path}/x.csv", *words[3:]]) == 3
    assert "is named twice" in capsys.readouterr().err


COMMAND_LINES = {
    "shares": (("--splits", "0.7", "0.1", "0.3"), "is not 1"),
    "no train": (("--splits", "0", "0.5", "0.5"), "train has none"),
    "both cuts": (("--splits", "1", "0", "0", "--split-months", "1", "1", "1"), "not allowed with"),
    "times": (("--no-times", "--time-column", "date"), "give one of them"),
    "uneven": (("--no-times", "--uneven"), "give one of them"),
    "columns": (("--columns", "a", "a"), "names a column twice"),
    "context": (("--context", "-1"), "is not from 0"),
}


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_words_that_do_not_go_together_are_refused(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = COMMAND_LINES[case]
    with pytest.raises(SystemExit, match="2"):
        prepare(tmp_path, *words, content=text(hours(20)))
    assert message in capsys.readouterr().err


def test_columns_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, "--columns", "c", content=text(hours(20))) == 3
    assert "line 1: has no column 'c'; there are date, a, b" in capsys.readouterr().err
    assert prepare(tmp_path, "--columns", "date", content=text(hours(20))) == 3
    assert "column 'date' is that of times" in capsys.readouterr().err
    assert prepare(tmp_path, "--columns", "b", content=text(hours(20))) == 0
    assert stored(tmp_path / "out", "train").shape == (14, 1)


def test_many_columns_named_by_numbers(tmp_path: Path) -> None:
    """As those of Electricity and Traffic are."""
    values = np.random.default_rng(0).normal(size=(30, 900)).round(6)
    rows = [
        f"2016-07-{row + 1:02d} 02:00:00,{','.join(map(str, line))}"
        for row, line in enumerate(values.tolist())
    ]
    header = f"date,{','.join(map(str, range(899)))},OT\n"
    assert prepare(tmp_path, "--splits", "1", "0", "0", content=text(rows, header)) == 0
    scaled_ND = (values - values.mean(0)) / values.std(0)
    np.testing.assert_allclose(stored(tmp_path / "out", "train"), scaled_ND, rtol=1e-5, atol=1e-6)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["train"]


def test_what_was_made_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, content=text(hours(20))) == 0
    capsys.readouterr()
    assert prepare(tmp_path) == 0
    assert "complete already" in capsys.readouterr().out
    assert prepare(tmp_path, "--keep-constant") == 2
    assert "keep_constant differ" in capsys.readouterr().err
    assert prepare(tmp_path, "--keep-constant", "--overwrite") == 0
