import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.disk import fill, small_disk

from pretrain.metrics.jsonl import MetricsFile, Row


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_are_exact(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    values: Row = {"step": 2**53 + 1, "loss": 0.1 + 0.2, "learning_rate": 5e-324, "verdict": 'say "ü"\n'}
    file.append(values)
    assert rows(tmp_path / "metrics.jsonl") == [{**values, "session": 1}]


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1, "loss": math.nan, "gradient_norm": math.inf, "seconds": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    expected = {"step": 1, "loss": None, "gradient_norm": None, "seconds": 1.0, "session": 1}
    assert rows(tmp_path / "metrics.jsonl") == [{**expected, "nonfinite": ["loss", "gradient_norm"]}]


def test_sessions_are_counted_and_rows_appended(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        file = MetricsFile(tmp_path / "metrics.jsonl")
        file.append({"step": step})
        file.close()
    assert [(row["step"], row["session"]) for row in rows(tmp_path / "metrics.jsonl")] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]


def test_rows_of_any_length_are_found(tmp_path: Path) -> None:
    """A very deep model has a measure for each of its layers."""
    deep = {f"activation_rms/block {number}": 0.1 for number in range(10_000)}
    for _ in range(2):
        file = MetricsFile(tmp_path / "metrics.jsonl")
        file.append({"step": 1, **deep})
        file.close()
    assert [row["session"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]


TORN = {
    b'{"step": 1, "session": 4}\n{"step": 2, "se': (1, 5),
    b'{"step": 1, "session": 4}\n' + bytes(200_000): (1, 5),
    b'{"step": 1, "session": 4}\n' + b'{"x": "' + b"y" * 2**16: (1, 5),
    b'{"step": 1, "session": 4}\n' + b"y" * (2**16 - 1): (1, 5),
    b'{"step": 1, "session": 4}\nno row\n': (2, 5),
    b"\n": (1, 1),
    b"y" * 2**17: (0, 1),
    b"{": (0, 1),
    b"": (0, 1),
}


@pytest.mark.parametrize(("content", "expected"), TORN.items(), ids=range(len(TORN)))
def test_torn_line_is_cut_off(tmp_path: Path, content: bytes, expected: tuple[int, int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    MetricsFile(path).append({"step": 2})
    kept, session = expected
    lines = path.read_bytes().splitlines()
    assert lines[:-1] == content.splitlines()[:kept]
    assert json.loads(lines[-1]) == {"step": 2, "session": session}


KILLED = """
import os, signal, sys
from pathlib import Path
from pretrain.metrics.jsonl import MetricsFile
file = MetricsFile(Path(sys.argv[1]))
for step in range(1, 101):
    file.append({"step": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -signal.SIGKILL
    assert [row["step"] for row in rows(path)] == list(range(1, 101))


def test_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size=64 * 1024) as disk:
        file = MetricsFile(disk / "metrics.jsonl")
        file.append({"step": 1})
        ballast = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            file.append({"step": 2, "text": "y" * 10_000})
        ballast.unlink()
        file.append({"step": 3})
        assert [row["step"] for row in rows(disk / "metrics.jsonl")] == [1, 3]
        file.close()


def test_readers_see_rows_at_once(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1})
    assert os.stat(tmp_path / "metrics.jsonl").st_size > 0
