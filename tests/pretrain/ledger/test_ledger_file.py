"""The ledger keeps what it was told, notices what was changed, and survives kills and full disks."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.disk import fill, small_disk

from pretrain.errors import CheckpointError
from pretrain.ledger.file import BEGINNING, LedgerFile, read_ledger
from pretrain.ledger.record import Kind, Record, encode


def veto(attempt: int, reason: str = "non-finite") -> Record:
    fields = {"reason": reason, "draws": [8 * attempt, 8 * attempt + 8]}
    return Record(Kind.VETO, step=attempt, attempt=attempt, lineage=1, fields=fields)


def filled(path: Path, count: int) -> Path:
    ledger = LedgerFile(path)
    for attempt in range(1, count + 1):
        ledger.append(veto(attempt))
    ledger.close()
    return path


def test_records_come_back(tmp_path: Path) -> None:
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    written = [ledger.append(veto(attempt, 'say "ü"\n')) for attempt in (1, 2, 3)]
    assert ledger.records() == tuple(written)
    assert [record.seq for record in written] == [1, 2, 3]
    assert written[0].time.endswith("+00:00")
    assert ledger.history.vetoes == (1, 2, 3)


def test_it_goes_on_where_an_earlier_process_has_ended(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl", 2)
    ledger = LedgerFile(path)
    assert ledger.history.vetoes == (1, 2)
    ledger.append(veto(3))
    assert [record.seq for record in read_ledger(path)] == [1, 2, 3]


def test_what_is_not_finite_is_valid_json_and_comes_back(tmp_path: Path) -> None:
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    alarm = {"signal": "loss", "kind": "high", "onset": 1, "value": 1.0}
    values = {
        "value": math.nan,
        "alarms": [{**alarm, "threshold": math.inf}, {**alarm, "threshold": -math.inf}],
        "seconds": 1e-3,
    }
    ledger.append(Record(Kind.ALARM, 1, 1, 1, values))
    line = (tmp_path / "ledger.jsonl").read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    fields = ledger.records()[0].fields
    assert math.isnan(float(fields["value"]))
    assert [float(alarm["threshold"]) for alarm in fields["alarms"]] == [math.inf, -math.inf]
    assert fields["seconds"] == 1e-3


def test_any_torn_end_is_cut_off(tmp_path: Path) -> None:
    content = filled(tmp_path / "whole.jsonl", 3).read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    path = tmp_path / "ledger.jsonl"
    for size in range(start, len(content)):
        path.write_bytes(content[:size])
        assert [record.attempt for record in read_ledger(path)] == [1, 2]
        assert path.stat().st_size == size, "a reader cuts nothing: the writer may be in the middle of a line"
        ledger = LedgerFile(path)
        ledger.append(veto(9))
        assert [record.attempt for record in ledger.records()] == [1, 2, 9]
        ledger.close()


def swap(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def edit(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"non-finite", b"nothing...."), *lines[2:]]


DAMAGE = {
    "changed": (edit, 3, "does not follow"),
    "changed first": (
        lambda lines: [lines[0].replace(b"[8, 16]", b"[8, 17]"), *lines[1:]],
        2,
        "does not follow",
    ),
    "swapped": (swap, 2, "does not follow"),
    "lost": (lambda lines: [lines[0], *lines[2:]], 2, "does not follow"),
    "first lost": (lambda lines: lines[1:], 1, "does not follow"),
    "twice": (lambda lines: [*lines[:2], *lines[1:]], 3, "does not follow"),
    "zeros": (lambda lines: [*lines[:2], bytes(100), *lines[3:]], 3, "not JSON"),
    "not text": (lambda lines: [*lines[:2], b"\xff\xfe", *lines[3:]], 3, "codec can't decode"),
    "another file": (lambda lines: [b'{"step": 1}'], 1, "not a record of a ledger"),
    "a list": (lambda lines: [b"[1]"], 1, "not a record of a ledger"),
    "newer format": (lambda lines: [lines[0].replace(b'"format": 1', b'"format": 2')], 1, "format 2"),
    "newer kind": (lambda lines: [lines[0].replace(b'"veto"', b'"prayer"')], 1, "'prayer'"),
    "no step": (lambda lines: [lines[0].replace(b'"step"', b'"stop"')], 1, "without 'step'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    damage, number, fault = DAMAGE[name]
    path = filled(tmp_path / "ledger.jsonl", 4)
    content = b"".join(line + b"\n" for line in damage(path.read_bytes().splitlines()))
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        LedgerFile(path)
    assert str(refused.value).startswith(f"{path}:{number}: ")
    assert fault in str(refused.value)
    assert refused.value.exit_code == 4
    assert path.read_bytes() == content, "nothing is cut from what is not understood"


@pytest.mark.parametrize("kind", sorted({*Kind} - {Kind.PREEMPTED, Kind.DONE}))
def test_a_record_without_its_fields_is_refused(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(encode(Record(kind, 1, 1, 1, seq=1), BEGINNING) + b"\n")
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl:1: "):
        read_ledger(path)


def test_the_advice_of_a_refusal_works(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl", 4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\n", *lines[2:]]))
    with pytest.raises(CheckpointError, match="keep only its first 2 lines"):
        LedgerFile(path)
    path.write_bytes(b"".join(lines[:2]))
    assert LedgerFile(path).history.vetoes == (1, 2)


def test_a_full_disk_leaves_nothing_half(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size=64 * 1024) as disk:
        ledger = LedgerFile(disk / "ledger.jsonl")
        ledger.append(veto(1))
        ballast = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            ledger.append(veto(2, "y" * 10_000))
        assert ledger.history.vetoes == (1,)
        ballast.unlink()
        ledger.append(veto(3))
        assert [record.attempt for record in read_ledger(disk / "ledger.jsonl")] == [1, 3]
        assert ledger.history.vetoes == (1, 3)
        ledger.close()


def test_a_failed_sync_takes_the_record_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    ledger.append(veto(1))

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            ledger.append(veto(2))
    ledger.append(veto(3))
    assert [record.attempt for record in ledger.records()] == [1, 3]


def test_a_record_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    ledger.append(veto(1))
    assert synced == [(tmp_path / "ledger.jsonl").stat().st_size]


def test_a_record_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    ledger = LedgerFile(tmp_path / "ledger.jsonl")
    with pytest.raises(TypeError):
        ledger.append(Record(Kind.VETO, 1, 1, 1, {"reason": object()}))
    assert ledger.history.vetoes == ()
    assert ledger.records() == ()


KILLED = """
import os, signal, sys
from pathlib import Path
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.record import Kind, Record
ledger = LedgerFile(Path(sys.argv[1]))
for attempt in range(1, 51):
    ledger.append(Record(Kind.VETO, attempt, attempt, 1, {"reason": "", "draws": [0, 8]}))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_records_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -signal.SIGKILL
    assert LedgerFile(path).history.vetoes == tuple(range(1, 51))
