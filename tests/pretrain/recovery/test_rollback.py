"""A run that slips, goes back, and goes on: in every layout to the same end as one that was told beforehand."""

import itertools
import json
import os
import socket
import time
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.runs import contents, differences, metrics, newest_checkpoint
from support.training import Layout, slow
from support.watched import kinds, one, run, story, watched
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline.files import replace_file
from pretrain.checkpoint.lifecycle import LATEST, candidates
from pretrain.checkpoint.tag import Tag
from pretrain.config.run import CheckpointConfig, RunConfig
from pretrain.errors import RanksDisagree
from pretrain.ledger import file as ledger_file
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.record import Kind, Record
from pretrain.run_folder import LEDGER
from pretrain.step import StepReport, TrainState, Verdict
from pretrain.trainer import Trainer
from pretrain.watchdog.watchdog import Watchdog

LAYOUTS = [
    Layout(),
    Layout(data=2, zero=1),
    Layout(tensor=2, pipeline=2),
    slow(Layout(tensor=2)),
    slow(Layout(pipeline=2)),
    slow(Layout(data=2, zero=2, dtype="bf16")),
    slow(Layout(data=2, zero=3)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_rollback_equals_a_run_that_was_told_beforehand(
    layout: Layout, corpus: Path, tmp_path: Path
) -> None:
    """NaN in four gradients of one rank: three vetoes, then back and on without those samples."""
    slipped, told = tmp_path / "slipped", tmp_path / "told"
    config = watched(layout, slipped, corpus)
    ends = run_distributed(run, layout.world_size, config, "nan_gradient@20+4")
    assert ends == ["finished"] * layout.world_size
    assert kinds(slipped).count("veto") == 3
    intent = one(slipped, Kind.ROLLBACK_INTENT)
    assert (intent.step, intent.fields["onset"], intent.fields["target_step"]) == (23, 20, 12)
    assert one(slipped, Kind.ROLLBACK_DONE).fields["tier"] == "memory"
    assert kinds(slipped)[-1] == "done"

    (told / "test").mkdir(parents=True)
    written = LedgerFile(told / "test" / LEDGER)
    written.append(Record(intent.kind, 0, 0, 1, {**intent.fields, "target_step": 0}))
    written.append(Record(Kind.ROLLBACK_DONE, 0, 0, 1, {"seconds": 0.0, "tier": "disk", "proof": ""}))
    written.close()
    assert run_distributed(run, layout.world_size, watched(layout, told, corpus)) == ends
    assert metrics(slipped) == metrics(told)
    ours, theirs = contents(newest_checkpoint(slipped)), contents(newest_checkpoint(told))
    shared = [name for name in ours if not name.startswith("rank_")]
    assert shared
    assert [d for name in shared for d in differences(ours[name], theirs[name], name)] == []


@pytest.mark.parametrize("every", [18, 21])
def test_a_rollback_waits_for_a_checkpoint_that_is_being_written(
    every: int, corpus: Path, tmp_path: Path
) -> None:
    """NaN from step 20 on takes the run back at step 23, while a thread has the checkpoint of the step named here."""
    config = watched(Layout(), tmp_path, corpus)
    config = config.model_copy(update={"checkpoint": CheckpointConfig(every_steps=every, keep_last=10)})
    assert run_distributed(run, 1, config, "nan_gradient@20+4") == ["finished"]
    records = story(tmp_path)
    intent = one(tmp_path, Kind.ROLLBACK_INTENT)
    sealed = next(r for r in records if r.kind is Kind.SEALED and r.step == every)
    assert sealed.seq < intent.seq, "what the thread was about is complete before anything is undone"
    condemned = [r.fields["tag"] for r in records if r.kind is Kind.CONDEMNED]
    assert intent.fields["target_step"] < every
    assert sealed.fields["tag"] in condemned
    assert not candidates(tmp_path / "test" / "checkpoints").torn


def test_a_healthy_run_is_left_alone_and_its_last_checkpoint_is_certified(
    corpus: Path, tmp_path: Path
) -> None:
    assert run_distributed(run, 2, watched(Layout(data=2, zero=1), tmp_path, corpus)) == ["finished"] * 2
    assert set(kinds(tmp_path)) <= {"run_start", "sealed", "certified", "done", "suspect", "alarm"}
    latest = (tmp_path / "test/checkpoints" / LATEST).read_text()
    assert latest == newest_checkpoint(tmp_path).name


def test_curves_go_on_where_steps_are_taken_again(corpus: Path, tmp_path: Path) -> None:
    run_distributed(run, 1, watched(Layout(), tmp_path, corpus), "nan_gradient@20+4")
    rows = [json.loads(line) for line in (tmp_path / "test/metrics.jsonl").read_text().splitlines()]
    steps = [(row["step"], row["attempt"], row["lineage"]) for row in rows if "loss" in row]
    assert [attempt for _, attempt, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[22] == (23, 23, 1)
    assert steps[23] == (13, 24, 2)


def test_tensorboard_has_the_course_of_the_watchdog_and_its_words(corpus: Path, tmp_path: Path) -> None:
    config = watched(Layout(), tmp_path, corpus)
    journal = config.journal.model_copy(update={"tensorboard": True})
    config = config.model_copy(update={"journal": journal})
    assert run_distributed(run, 1, config, "nan_gradient@20+4") == ["finished"]
    events = EventAccumulator(str(tmp_path / "test/tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    rollbacks = [(event.step, event.value) for event in events.Scalars("wd/rollbacks")]
    assert rollbacks == [(attempt, float(attempt > 23)) for attempt in range(1, 42)]
    alarms = {event.step: event.value for event in events.Scalars("wd/alarms")}
    assert [alarms[attempt] for attempt in (19, 20, 22)] == [0, 1, 1]
    batch = config.data.global_batch_size
    samples = {event.step: event.value for event in events.Scalars("train/samples")}
    assert samples == {attempt: batch * (attempt - 11 * (attempt > 23)) for attempt in range(1, 42)}
    tokens = {event.step: event.value for event in events.Scalars("train/tokens")}
    assert tokens == {a: count * config.data.tokens_per_sample for a, count in samples.items()}
    words = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("run/events/text_summary")]
    for told in ("update withheld: gradient_norm is not finite", "rollback (skip) to step 12, skips"):
        assert any(told in word for word in words), words


def test_trouble_that_does_not_end_stops_the_run_and_the_ledger_says_why(
    corpus: Path, tmp_path: Path
) -> None:
    (end,) = run_distributed(run, 1, watched(Layout(), tmp_path, corpus), "nan_gradient@12+200")
    assert end.startswith("diverged")
    last = story(tmp_path)[-1]
    assert (last.kind, last.fields["code"]) == (Kind.STOPPED, 5)

    before = len(story(tmp_path))
    assert run_distributed(run, 1, watched(Layout(), tmp_path, corpus)) == ["finished"]
    again = story(tmp_path)[before]
    assert again.kind is Kind.RESUMED
    assert again.lineage == last.lineage + 1
    rows = [json.loads(line) for line in (tmp_path / "test/metrics.jsonl").read_text().splitlines()]
    attempts = [row["attempt"] for row in rows if "loss" in row]
    assert attempts == list(range(1, len(attempts) + 1)), "what led to the end stays in the curves"


def test_a_fault_of_memory_is_undone_without_a_trace_and_its_host_is_named(
    corpus: Path, tmp_path: Path
) -> None:
    """The same samples again: the run ends like one in which no bit has flipped."""
    layout, faulty, sound = Layout(data=2, zero=1), tmp_path / "faulty", tmp_path / "sound"
    ends = run_distributed(run, 2, watched(layout, faulty, corpus), "exponent_flip@20")
    assert ends == run_distributed(run, 2, watched(layout, sound, corpus)) == ["finished"] * 2
    assert one(faulty, Kind.HOST_SUSPECT).fields == {"rank": 1, "host": socket.gethostname()}
    intent = one(faulty, Kind.ROLLBACK_INTENT)
    assert (intent.fields["remedy"], intent.fields["skip"]) == ("replay", [])
    assert metrics(faulty) == metrics(sound)


def test_where_memory_fails_and_may_not_be_undone_the_run_ends_and_names_the_host(
    corpus: Path, tmp_path: Path
) -> None:
    config = watched(Layout(data=2, zero=1), tmp_path, corpus, replays=0)
    for end in run_distributed(run, 2, config, "exponent_flip@20"):
        assert end.startswith("diverged: tev_reach")
        assert f"test the hosts' memory; seen on {socket.gethostname()}; evidence is in" in end


def test_a_host_is_suspected_once_for_a_fault_that_stays(corpus: Path, tmp_path: Path) -> None:
    """Of three copies one is wrong, and nothing is done about it."""
    config = watched(Layout(data=3), tmp_path, corpus, dry_run=True)
    assert run_distributed(run, 3, config, "replica_flip@10") == ["finished"] * 3
    assert one(tmp_path, Kind.HOST_SUSPECT).fields["rank"] == 2


def test_a_dry_run_withholds_what_is_not_finite_and_goes_on(corpus: Path, tmp_path: Path) -> None:
    config = watched(Layout(), tmp_path, corpus, dry_run=True)
    assert run_distributed(run, 1, config, "nan_gradient@20+4") == ["finished"]
    assert "rollback_intent" not in kinds(tmp_path)


def test_a_run_taken_back_to_memory_leaves_something_on_disk_to_go_on_from(
    corpus: Path, tmp_path: Path
) -> None:
    """Its only checkpoint is condemned: a process that ends now must not be the end of the run."""
    config = watched(Layout(), tmp_path, corpus).model_copy(
        update={"checkpoint": CheckpointConfig(every_steps=20)}
    )
    assert run_distributed(run, 1, config, "nan_gradient@22+4") == ["finished"]
    done = one(tmp_path, Kind.ROLLBACK_DONE)
    assert done.fields["tier"] == "memory"
    sealed = [record for record in story(tmp_path) if record.kind is Kind.SEALED]
    assert [record.step for record in sealed] == [20, done.step, 20, 30]
    assert sealed[1].lineage == 2


def test_a_crash_between_intent_and_deed_is_made_up_for(corpus: Path, tmp_path: Path) -> None:
    """The ledger ends with an intent: the next start does it, from disk, and does not forget the skip."""
    config = watched(Layout(), tmp_path, corpus)
    run_distributed(run, 1, config, "nan_gradient@20+4")
    path = tmp_path / "test" / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "rollback_intent")
    replace_file(path, b"".join(lines[: cut + 1]).decode())
    intended = [tuple(r) for r in json.loads(lines[cut])["skip"]]
    assert run_distributed(run, 1, config) == ["finished"]
    after = story(tmp_path)[cut + 1 :]
    again = next(record for record in after if record.kind is Kind.ROLLBACK_INTENT)
    assert again.fields["target_step"] == 10
    assert [tuple(r) for r in again.fields["skip"]] == intended
    assert [record.kind for record in after][-1] is Kind.DONE


def run_with_a_rank_that_decides_differently(config: RunConfig) -> str:
    judge = Watchdog.judge

    def dissenting(watchdog: Watchdog, report: StepReport, *rest: Any) -> Verdict:
        verdict = judge(watchdog, report, *rest)
        watchdog.digest += report.step == 12 and os.environ["RANK"] == "1"
        return verdict

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watchdog, "judge", dissenting)
        try:
            return run(config)
        except RanksDisagree as error:
            return str(error)


def test_ranks_that_decide_differently_end_the_run_one_step_later(corpus: Path, tmp_path: Path) -> None:
    config = watched(Layout(data=2, zero=1), tmp_path, corpus)
    ends = run_distributed(run_with_a_rank_that_decides_differently, 2, config)
    assert ends == ["step 13: ranks have decided differently; nothing of it is saved"] * 2
    assert "sealed" not in kinds(tmp_path)  # nor is the checkpoint of step 10, which is not complete by then


def run_with_a_clock_that_jumps(config: RunConfig) -> str:
    """A day forth or back with every look at it, on one rank."""
    jumps = itertools.count()

    def jumping() -> float:
        return 1.8e9 + 86_400 * (-1) ** next(jumps)

    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "0":
            patch.setattr(time, "time", jumping)
            patch.setattr(ledger_file, "datetime", JumpingDays)
        return run(config, "nan_gradient@20+4")


class JumpingDays(datetime):
    @classmethod
    def now(cls, zone: tzinfo | None = None) -> datetime:
        return datetime.fromtimestamp(time.time(), zone)


def test_a_clock_that_jumps_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    twin, jumping = tmp_path / "twin", tmp_path / "jumping"
    layout = Layout(data=2, zero=1)
    ends = run_distributed(run, 2, watched(layout, twin, corpus), "nan_gradient@20+4")
    assert ends == run_distributed(run_with_a_clock_that_jumps, 2, watched(layout, jumping, corpus))
    assert kinds(jumping) == kinds(twin)
    assert metrics(jumping) == metrics(twin)
    assert len({record.time[:10] for record in story(jumping)}) == 2


def run_that_settles_higher(config: RunConfig) -> str:
    """From step 21 on the loss is half as high again, for good."""
    judge = Trainer._judge

    def settled(trainer: Trainer, report: StepReport, state: TrainState) -> Verdict:
        loss = report.loss * (1.5 if report.step > 20 else 1)
        return judge(trainer, replace(report, loss=loss), state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_judge", settled)
        return run(config)


def test_what_came_before_a_loss_that_settles_higher_is_not_certified_now_nor_later(
    corpus: Path, tmp_path: Path
) -> None:
    config = watched(Layout(), tmp_path, corpus, threshold=1e9, horizon=8)
    assert run_distributed(run_that_settles_higher, 1, config) == ["finished"]
    sealed = [record.fields["tag"] for record in story(tmp_path) if record.kind is Kind.SEALED]
    certified = {record.fields["tag"] for record in story(tmp_path) if record.kind is Kind.CERTIFIED}
    assert [Tag.parse(tag).step for tag in sealed] == [10, 20, 30]
    assert {sealed[0], sealed[2]} <= certified
    assert sealed[1] not in certified
    assert run_distributed(run, 1, config) == ["finished"]  # which has the chance to certify what is left
    assert sealed[1] not in {r.fields["tag"] for r in story(tmp_path) if r.kind is Kind.CERTIFIED}


def test_a_run_is_resumed_by_hand_from_a_checkpoint_and_not_from_a_condemned_one(
    corpus: Path, tmp_path: Path
) -> None:
    config = watched(Layout(), tmp_path, corpus)
    assert run_distributed(run, 1, config) == ["finished"]
    tags = {record.fields["tag"] for record in story(tmp_path) if record.kind is Kind.SEALED}
    first, middle, _ = sorted(tags)
    before = metrics(tmp_path)
    assert run_distributed(run, 1, config, None, first) == ["finished"]
    assert metrics(tmp_path) == before
    assert story(tmp_path)[-1].lineage == 2
    (end,) = run_distributed(run, 1, config, None, middle)
    assert end.startswith("refused")
    assert run_distributed(run, 1, config, None, middle, True) == ["finished"]
    assert metrics(tmp_path) == before
