import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.disk import fill, small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from pretrain.config.run import JournalConfig
from pretrain.metrics.logger import FileLogger, MetricsLogger, SilentLogger
from pretrain.metrics.tensorboard import tagged
from pretrain.step import Action, StepReport, Verdict
from pretrain.tasks.examples import Example
from pretrain.tasks.next_token import Perplexity

PROCEED = Verdict(Action.PROCEED)
REPORT = StepReport(step=1, loss=2.0, gradient_norm=0.5, learning_rate=1e-3, samples=8, tokens=1024)
MEASUREMENTS = {"seconds": 2.0, "wait_seconds": 0.5, "memory_bytes": 4096.0}


def open_journal(folder: Path, first_step: int = 1, **options: object) -> FileLogger:
    return FileLogger(
        folder,
        JournalConfig.model_validate(
            {"console": "plain", "console_every_steps": 1, "peak_tflops": 2.0, **options}
        ),
        total_steps=20,
        first_step=first_step,
        flops_per_token=1e9,
        world_size=2,
        device_name="cpu",
        metrics=(Perplexity(),),
        targets="tokens",
    )


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "histograms": 0}).Reload()


def test_row_of_a_step(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.record(REPORT, PROCEED, MEASUREMENTS)
    assert rows(tmp_path) == [
        {
            "step": 1,
            "samples": 8,
            "tokens": 1024,
            "loss": 2.0,
            "learning_rate": 1e-3,
            "gradient_norm": 0.5,
            "damaged": 0,
            "seconds": 2.0,
            "wait_seconds": 0.5,
            "memory_bytes": 4096.0,
            "tokens_per_second": 512.0,
            "tflops": 0.256,
            "mfu": 0.128,
            "wait_fraction": 0.25,
            "attempt": 1,
            "lineage": 1,
            "verdict": "proceed",
            "session": 1,
        }
    ]


def test_a_second_pass_is_work_of_the_device(tmp_path: Path) -> None:
    """Tokens are those of the batch, FLOPs those of both passes; the second loss has its own curve."""
    ascent = {"ascended_loss": 2.5, "ascent_gradient_norm": 0.7}
    with open_journal(tmp_path) as journal:
        journal.record(replace(REPORT, passes=2, measures=ascent), PROCEED, MEASUREMENTS)
    (row,) = rows(tmp_path)
    assert (row["tokens_per_second"], row["tflops"], row["mfu"]) == (512.0, 0.512, 0.256)
    drawn = curves(tmp_path).Tags()["scalars"]
    assert {"train/ascended_loss", "train/ascent_gradient_norm"} <= set(drawn)


def test_row_of_a_withheld_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_journal(tmp_path) as journal:
        journal.record(replace(REPORT, loss=math.nan), Verdict(Action.VETO, "not finite"), MEASUREMENTS)
    row = rows(tmp_path)[0]
    assert (row["loss"], row["nonfinite"]) == (None, ["loss"])
    assert (row["verdict"], row["reason"]) == ("veto", "not finite")
    assert "veto: not finite" in capsys.readouterr().out


def test_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_journal(tmp_path) as journal:
        journal.validation(5, 1.5, targets=2048, seconds=3.0, metrics={"perplexity": math.exp(1.5)})
    row = rows(tmp_path)[0]
    assert list(row) == [
        "step",
        "validation_loss",
        "validation_perplexity",
        "validation_tokens",
        "validation_seconds",
        "session",
    ]
    assert row["validation_perplexity"] == math.exp(1.5)
    assert (row["step"], row["validation_loss"], row["validation_tokens"]) == (5, 1.5, 2048)
    assert "loss" not in row
    valid = curves(tmp_path)
    assert [(event.step, event.value) for event in valid.Scalars("valid/loss")] == [(5, 1.5)]
    assert valid.Scalars("valid/perplexity")[0].value == pytest.approx(math.exp(1.5))
    expected = "step 5: validation loss 1.5000, perplexity 4.48 (2,048 tokens in 3.0 s)\n"
    assert capsys.readouterr().out == expected


def test_metrics_of_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but their names says what they are; there is no perplexity where the task has none."""
    journal = FileLogger(
        tmp_path,
        JournalConfig(console="plain", console_every_steps=1),
        total_steps=20,
        first_step=1,
        flops_per_token=1e9,
        world_size=1,
        device_name="cpu",
    )
    with journal:
        journal.record(REPORT, PROCEED, MEASUREMENTS)
        journal.validation(1, 0.5, 64, 1.0, {"accuracy": 0.875, "bleu": 27.25})
    row = rows(tmp_path)[1]
    assert (row["validation_accuracy"], row["validation_bleu"]) == (0.875, 27.25)
    tags = curves(tmp_path).Tags()["scalars"]
    assert {"valid/loss", "valid/accuracy", "valid/bleu"} < set(tags)
    assert not [tag for tag in tags if "perplexity" in tag]
    said = capsys.readouterr().out
    assert "validation loss 0.5000, accuracy 0.8750, bleu 27.25 (64 targets in 1.0 s)" in said


TAGS = {
    "tev_mean": "embedding/tev_mean",
    "tev_head_p99": "embedding/tev_head_p99",
    "tev_source_std": "embedding/tev_source_std",
    "tev_reach": "embedding/tev_reach",
    "tev_shift": "probe/tev_shift",
    "my_probe/layer_07": "probe/my_probe/layer_07",
    "sigma/layer_07": "spectral/sigma/layer_07",
    "validation_word_error_rate": "valid/word_error_rate",
}


def test_tags() -> None:
    assert tagged({name: 0.0 for name in TAGS} | {"attempt": 1, "validation_tokens": 1}) == {
        tag: 0.0 for tag in TAGS.values()
    }


def test_curves(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for step in (1, 2, 3):
            report = replace(REPORT, step=step, loss=2.0 / step)
            journal.record(report, PROCEED, {**MEASUREMENTS, "tev_mean": 0.02, "my_probe": float(step)})
    found = curves(tmp_path)
    assert set(found.Tags()["scalars"]) == {
        "train/loss",
        "train/perplexity",
        "train/learning_rate",
        "train/gradient_norm",
        "throughput/seconds_per_step",
        "throughput/tokens_per_second",
        "throughput/tflops",
        "throughput/mfu",
        "memory/allocated_bytes",
        "data/wait_fraction",
        "data/damaged_samples",
        "embedding/tev_mean",
        "probe/my_probe",
    }
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    assert found.Scalars("train/perplexity")[0].value == pytest.approx(math.exp(2.0))


def test_numbers_beyond_float32(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.record(replace(REPORT, loss=1e300, gradient_norm=math.inf), PROCEED, MEASUREMENTS)
    assert math.isinf(curves(tmp_path).Scalars("train/perplexity")[0].value)


def test_events_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_journal(tmp_path) as journal:
        journal.event(7, "checkpoint step00000007-a1 saved")
    text = curves(tmp_path).Tensors("run/events/text_summary")[0]
    assert (text.step, text.tensor_proto.string_val[0]) == (7, b"    checkpoint step00000007-a1 saved")
    assert capsys.readouterr().out == "step 7: checkpoint step00000007-a1 saved\n"
    assert rows(tmp_path) == []


def test_examples_are_text_by_which_each_can_be_followed(tmp_path: Path) -> None:
    """The first few, each under its own tag."""
    with open_journal(tmp_path) as journal:
        for step in (4, 8):
            journal.examples(step, [Example(f"source {n}", "reference", f"at {step}") for n in range(1, 8)])
    found = curves(tmp_path)
    tags = [f"valid/example_{number}/text_summary" for number in range(1, 6)]
    assert found.Tags()["tensors"] == tags
    for number, tag in enumerate(tags, start=1):
        told = [(event.step, event.tensor_proto.string_val[0].decode()) for event in found.Tensors(tag)]
        lines = "    source      source {}\n    reference   reference\n    prediction  at {}"
        assert told == [(step, lines.format(number, step)) for step in (4, 8)]
    assert rows(tmp_path) == []


def test_examples_cannot_leave_their_code_block(tmp_path: Path) -> None:
    """What a data set and a young model say is shown as it is, and nothing in it is Markdown, HTML or a line."""
    hostile = "\n\n![x](http://example.com/x.png)\r\n\u2028<script>alert(1)</script>\x85\x1b[2J\u202e\t# big"
    with open_journal(tmp_path) as journal:
        journal.examples(1, [Example(hostile, hostile, hostile)])
    (event,) = curves(tmp_path).Tensors("valid/example_1/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert len(text.splitlines()) == 3
    assert all(line.startswith("    ") for line in text.splitlines())
    html = markdown_to_safe_html(text)
    assert html.startswith("<pre><code>")
    assert html.rstrip().endswith("</code></pre>")
    assert "<img" not in html
    assert "<script" not in html
    assert "\\x1b[2J\\u202e\\t# big" in html


def test_resume_does_not_overlap(tmp_path: Path) -> None:
    """The first session got to step 9 and died; the second one starts from a checkpoint of step 5."""
    first = open_journal(tmp_path)
    for step in range(1, 10):
        first.record(replace(REPORT, step=step, loss=1.0), PROCEED, MEASUREMENTS)
    first.validation(5, 1.0, 1, 1.0, {})
    first.validation(9, 1.0, 1, 1.0, {})
    first.close()
    with open_journal(tmp_path, first_step=6) as second:
        for step in range(6, 9):
            second.record(replace(REPORT, step=step, loss=2.0), PROCEED, MEASUREMENTS)
    found = curves(tmp_path)
    expected = [(step, 1.0) for step in range(1, 6)] + [(step, 2.0) for step in range(6, 9)]
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == expected
    assert [event.step for event in found.Scalars("valid/loss")] == [5]
    last = {row["step"]: row for row in rows(tmp_path) if "loss" in row}
    assert [row["session"] for row in last.values()] == [1] * 5 + [2] * 3 + [1]


def test_session_whose_clock_is_behind_is_read_after_the_one_that_it_continues(tmp_path: Path) -> None:
    """Also when the clock of the newest file's host was a day ahead, and with many sessions in a second."""
    for step in range(1, 13):
        with open_journal(tmp_path, first_step=step) as journal:
            journal.record(replace(REPORT, step=step), PROCEED, MEASUREMENTS)
        if step == 4:
            (newest,) = sorted((tmp_path / "tensorboard").iterdir())[-1:]
            seconds = newest.name.split(".")[3]
            newest.rename(str(newest).replace(seconds, str(int(seconds) + 86_400)))
    assert [event.step for event in curves(tmp_path).Scalars("train/loss")] == list(range(1, 13))


def test_histogram_of_all_that_fp32_can_hold(tmp_path: Path) -> None:
    """A run that diverges is not ended by its curves."""
    values = [-3.4e38, -1e-30, 0.0, 2.5, 1e30, 3.4e38, math.inf, math.nan]
    with open_journal(tmp_path) as journal:
        journal.histogram(1, "embedding/tev", values)
        journal.histogram(2, "embedding/tev", [3.4e38])
        journal.histogram(3, "embedding/tev", [math.nan])
    found = curves(tmp_path).Histograms("embedding/tev")
    assert [event.step for event in found] == [1, 2]
    assert found[0].histogram_value.num == 6
    assert sum(found[0].histogram_value.bucket) == 6


def test_full_disk_is_told_once_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    with small_disk(tmp_path / "disk", size=128 * 1024) as disk:
        journal = FileLogger(
            disk,
            JournalConfig(console="plain", console_every_steps=100),
            total_steps=1000,
            first_step=1,
            flops_per_token=1e9,
            world_size=1,
            device_name="cpu",
            clock=lambda: now[0],
        )
        journal.record(REPORT, PROCEED, MEASUREMENTS)
        ballast = fill(disk)
        for step in range(2, 99):
            journal.record(replace(REPORT, step=step), PROCEED, MEASUREMENTS)
        now[0] = 61.0
        journal.record(replace(REPORT, step=99), PROCEED, MEASUREMENTS)
        ballast.unlink()
        now[0] = 122.0
        for step in range(100, 110):
            journal.record(replace(REPORT, step=step), PROCEED, MEASUREMENTS)
        journal.close()
        steps = [row["step"] for row in rows(disk)]
        assert steps[0] == 1
        assert steps[-10:] == list(range(100, 110))
        drawn = [event.step for event in curves(disk).Scalars("train/loss")]
        assert drawn[0] == 1
        assert drawn[-10:] == steps[-10:]
    out = capsys.readouterr().out
    for name in ("metrics.jsonl", "tensorboard"):
        assert out.count(f"{name} cannot be written: [Errno 28] No space left on device") == 1
        assert out.count(f"{name} is written again") == 1


@contextmanager
def broken_stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as stream:
        patch.setattr(sys, "stdout", stream)
        yield
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), writer)


def test_console_that_is_gone_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with broken_stdout(monkeypatch), open_journal(tmp_path) as journal:
        with pytest.raises(BrokenPipeError):
            print("nobody hears this", flush=True)
        journal.event(0, "nor this")
        journal.record(REPORT, PROCEED, MEASUREMENTS)
    assert [row["step"] for row in rows(tmp_path)] == [1]


def test_close_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    threads, files = set(threading.enumerate()), open_files()
    with open_journal(tmp_path, console="bar") as journal:
        journal.record(REPORT, PROCEED, MEASUREMENTS)
        started = set(threading.enumerate()) - threads
        assert started
        assert open_files() != files
    for thread in started:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in started)
    assert open_files() == files


def open_files() -> set[str]:
    return {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def test_without_tensorboard(tmp_path: Path) -> None:
    with open_journal(tmp_path, tensorboard=False) as journal:
        journal.record(REPORT, PROCEED, MEASUREMENTS)
        journal.event(1, "saved")
    assert not (tmp_path / "tensorboard").exists()


def test_silent_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal: MetricsLogger = SilentLogger()
    with journal:
        journal.record(REPORT, PROCEED, MEASUREMENTS)
        journal.validation(1, 1.0, 1, 1.0, {})
        journal.examples(1, [Example("a", "b", "c")])
        journal.event(1, "saved")
    assert capsys.readouterr().out == ""
