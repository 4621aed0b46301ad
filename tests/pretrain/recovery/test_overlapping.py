"""Two faults at once: in each other's steps, in a recovery, and in what a recovery goes back to."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.distributed import RankFailed, run_distributed
from support.runs import contents, differences, metrics, newest_checkpoint
from support.training import Layout
from support.watched import kinds, run, story, watched

from pretrain.checkpoint import rank_files
from pretrain.checkpoint.lifecycle import candidates
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.fault import Fault
from pretrain.ledger.history import Rollback, fold
from pretrain.ledger.record import Kind

BeforeStep = Callable[[Fault, TrainEngine, int], None]


def run_hooked(config: RunConfig, before_step: BeforeStep) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fault, "before_step", before_step)
        return run(config)


def spoil_gradients(engine: TrainEngine) -> None:
    """The first gradient of the coming step is NaN."""

    def spoilt(gradient: Any) -> Any:
        handle.remove()
        return gradient * float("nan")

    handle = next(engine.module.parameters()).register_hook(spoilt)


def rollbacks(folder: Path) -> tuple[Rollback, ...]:
    return fold(story(folder)).rollbacks


def run_with_two_spells(config: RunConfig) -> str:
    def before_step(fault: Fault, engine: TrainEngine, attempt: int) -> None:
        if attempt in (*range(20, 24), *range(26, 30)):
            spoil_gradients(engine)

    return run_hooked(config, before_step)


def test_a_second_fault_in_the_steps_of_a_recovery_climbs_the_ladder(corpus: Path, tmp_path: Path) -> None:
    """Attempts 20 to 23 slip back to step 12; 26 to 29 slip again, before that ground is won back."""
    config = watched(Layout(data=2, zero=1), tmp_path, corpus)
    assert run_distributed(run_with_two_spells, 2, config) == ["finished"] * 2
    first, second = rollbacks(tmp_path)
    assert [str(first.remedy), str(second.remedy)] == ["skip", "deeper"]
    assert second.target_step < first.target_step == 12
    assert kinds(tmp_path)[-1] == "done"


def run_with_a_flip_between_vetoes(config: RunConfig) -> str:
    def before_step(fault: Fault, engine: TrainEngine, attempt: int) -> None:
        if attempt in (20, 21):
            spoil_gradients(engine)
        if attempt == 22 and engine.mesh.data.last:
            next(engine.module.parameters()).data.view(-1)[3] += 1e4

    return run_hooked(config, before_step)


def test_a_fault_of_memory_within_the_patience_of_another_is_undone(corpus: Path, tmp_path: Path) -> None:
    """Two updates are withheld for what is not finite when the copies of the table are found to differ."""
    config = watched(Layout(data=2, zero=1), tmp_path, corpus)
    assert run_distributed(run_with_a_flip_between_vetoes, 2, config) == ["finished"] * 2
    (rollback,) = rollbacks(tmp_path)
    assert str(rollback.remedy) == "replay"
    assert kinds(tmp_path).count("veto") == 2
    assert len(metrics(tmp_path)) == 30


def run_on_a_poisoned_candidate(config: RunConfig) -> str:
    """A weight that is written at attempt 11 does no harm until attempt 20, and every step from then on."""

    def before_step(fault: Fault, engine: TrainEngine, attempt: int) -> None:
        weight = next(engine.module.parameters()).data.view(-1)[-1:]
        if attempt == 11:
            weight += 50
        if attempt >= 20 and weight.item() > 25:
            spoil_gradients(engine)

    return run_hooked(config, before_step)


def test_a_candidate_that_is_poisoned_itself_is_left_behind_for_an_older_one(
    corpus: Path, tmp_path: Path
) -> None:
    """It is certified by then, as nothing was to be seen: the trouble that is there at once tells."""
    config = watched(Layout(), tmp_path, corpus, reach=False)
    assert run_distributed(run_on_a_poisoned_candidate, 1, config) == ["finished"]
    first, second = rollbacks(tmp_path)
    assert first.target_step == 12
    assert second.target_step <= 10
    assert (second.onset, str(second.remedy)) == (13, "deeper")
    assert kinds(tmp_path)[-1] == "done"


def run_until_it_is_killed(config: RunConfig, attempt_of_death: int) -> str:
    def before_step(fault: Fault, engine: TrainEngine, attempt: int) -> None:
        if attempt in range(20, 24):
            spoil_gradients(engine)
        if attempt == attempt_of_death:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_hooked(config, before_step)


@pytest.mark.parametrize("attempt", [24, 27, 33])
def test_a_kill_in_the_steps_that_are_taken_again_loses_nothing_of_the_rollback(
    corpus: Path, tmp_path: Path, attempt: int
) -> None:
    """Attempt 24 is the first one after it, by 33 a checkpoint of the new lineage is begun and not sealed."""
    killed, twin = tmp_path / "killed", tmp_path / "twin"
    configs = [watched(Layout(), folder, corpus) for folder in (killed, twin)]
    assert run_distributed(run_until_it_is_killed, 1, configs[1], 0) == ["finished"]
    with pytest.raises(RankFailed):
        run_distributed(run_until_it_is_killed, 1, configs[0], attempt)
    assert run_distributed(run_until_it_is_killed, 1, configs[0], 0) == ["finished"]
    assert rollbacks(killed)[0].skip == rollbacks(twin)[0].skip
    assert len(rollbacks(killed)) == 1
    assert metrics(killed) == metrics(twin)
    ours, theirs = contents(newest_checkpoint(killed)), contents(newest_checkpoint(twin))
    assert differences(ours, theirs) == []


def run_with_slow_disk(config: RunConfig, seconds: float) -> str:
    """The checkpoint of step 20 is being written when the verdict of step 23 comes."""
    flush = rank_files.fsync_and_hash

    def slowly(path: Path) -> Any:
        time.sleep(seconds)
        return flush(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_files, "fsync_and_hash", slowly)
        return run_until_it_is_killed(config, 0)


def test_a_verdict_that_comes_while_a_checkpoint_is_written_waits_for_it(
    corpus: Path, tmp_path: Path
) -> None:
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    for folder, seconds in ((fast, 0.0), (slow, 0.2)):
        config = watched(Layout(data=2, zero=1), folder, corpus)
        assert run_distributed(run_with_slow_disk, 2, config, seconds) == ["finished"] * 2
        told = [(record.kind, record.fields.get("tag")) for record in story(folder)]
        sealed = told.index((Kind.SEALED, "step00000020-a2"))
        assert sealed < told.index((Kind.CONDEMNED, "step00000020-a2")), "whole, and then evidence"
        found = candidates(folder / "test/checkpoints")
        assert not found.torn
        assert [tag.step for tag in found.condemned] == [20]
        assert not list((folder / "test/checkpoints").glob("*.tmp"))
    assert kinds(fast) == kinds(slow), "how fast a disk is decides nothing"
    assert metrics(fast) == metrics(slow)
