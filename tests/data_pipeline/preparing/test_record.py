"""What was made is not made twice, and what is somebody else's is not replaced, whatever the kind of data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError
from data_pipeline.preparing.record import make_once, make_record
from data_pipeline.preparing.workspace import RECORD, TargetExists

SETTINGS = {"rate": 8000, "seed": 0}


def make(folder: Path) -> str:
    (folder / "made").write_text("content")
    return "result"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.write_text("raw")
    return path


def test_a_record_names_kind_files_and_settings(raw: Path) -> None:
    record = make_record("waves", [raw], SETTINGS)
    assert list(record) == ["format", "task", "files", "rate", "seed"]
    assert record["task"] == "waves"
    assert record["files"]["count"] == 1
    assert record["files"]["bytes"] == 3
    assert make_record("waves", [raw], SETTINGS) == record
    raw.write_text("other")
    assert make_record("waves", [raw], SETTINGS)["files"]["sha256"] != record["files"]["sha256"]


def test_it_is_made_once(raw: Path, tmp_path: Path) -> None:
    record = make_record("waves", [raw], SETTINGS)
    summary = {"left_out": {"hidden": 2}}
    assert (
        make_once(tmp_path / "out", record, make, overwrite=False, summary=lambda result: summary) == "result"
    )
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == {
        **record,
        "summary": summary,
        "entries": ["made", RECORD],
    }
    assert make_once(tmp_path / "out", record, make, overwrite=False) is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["made", RECORD]


def test_an_empty_folder_is_taken(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    record = make_record("waves", [raw], SETTINGS)
    assert make_once(tmp_path / "out", record, make, overwrite=False) == "result"


def test_other_settings_need_overwrite(raw: Path, tmp_path: Path) -> None:
    make_once(tmp_path / "out", make_record("waves", [raw], SETTINGS), make, overwrite=False)
    other = make_record("waves", [raw], {**SETTINGS, "seed": 1})
    with pytest.raises(TargetExists, match=r"made with other settings or files \(seed differ\)"):
        make_once(tmp_path / "out", other, make, overwrite=False)
    assert make_once(tmp_path / "out", other, make, overwrite=True) == "result"


def test_a_folder_without_a_record_is_never_replaced(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(TargetExists, match="not a folder that `surefoot prepare` made"):
        make_once(tmp_path / "out", make_record("waves", [raw], SETTINGS), make, overwrite=True)


def test_what_fails_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        make(folder)
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        make_once(tmp_path / "out", make_record("waves", [raw], SETTINGS), fail, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_file_that_has_gone_is_named(raw: Path) -> None:
    raw.unlink()
    with pytest.raises(DataError, match="raw: is missing"):
        make_record("waves", [raw], SETTINGS)


@pytest.mark.parametrize("record", [{}, {"entries": "thesis"}, {"entries": [["thesis"], 1]}, SETTINGS])
def test_a_record_of_others_does_not_give_their_folder_away(
    record: Mapping[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RECORD).write_text(json.dumps(record))
    (out / "thesis").write_text("mine")
    with pytest.raises(TargetExists, match=r"holds .*thesis, which is not known to be of `surefoot prepare`"):
        make_once(out, {"rate": 1}, never, overwrite=True)
    assert (out / "thesis").read_text() == "mine"


def test_what_was_put_beside_what_was_made_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_once(out, {"rate": 1}, make, overwrite=False)
    (out / "runs").mkdir()
    assert make_once(out, {"rate": 1}, never, overwrite=True) is None
    with pytest.raises(TargetExists, match="out: holds runs, which"):
        make_once(out, {"rate": 2}, never, overwrite=True)
    (out / "runs").rmdir()
    assert make_once(out, {"rate": 2}, make, overwrite=True) == "result"


def test_what_is_put_there_during_the_work_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def meanwhile(folder: Path) -> str:
        (out / "download").write_text("mine")
        return make(folder)

    with pytest.raises(TargetExists, match="not a folder that `surefoot prepare` made"):
        make_once(out, {}, meanwhile, overwrite=False)
    assert (out / "download").read_text() == "mine"


def never(folder: Path) -> None:
    pytest.fail("it is refused before the work")
