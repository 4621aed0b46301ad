"""What the disk had no room for is tried again soon, and is not taken for damage."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.training import Layout
from support.watched import changed, kinds, run, story, watched

from pretrain.checkpoint.tag import Tag
from pretrain.config.run import RunConfig
from pretrain.ledger.record import Kind
from pretrain.metrics.logger import FileLogger
from pretrain.recovery.certification import BACKGROUND_STEPS

RETRY = 4


def failing_once(action: Callable[..., Any]) -> Callable[..., Any]:
    failures = [OSError(errno.ENOSPC, "No space left on device")]

    def attempt(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return action(*arguments, **options)

    return attempt


def run_with_one_failure_of(config: RunConfig, module: str, name: str, retry: int = RETRY) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.recovery.candidates.RETRY_STEPS", retry)
        patch.setattr("pretrain.recovery.certification.RETRY_STEPS", retry)
        target = __import__(module, fromlist=[name])
        patch.setattr(target, name, failing_once(getattr(target, name)))
        return run(config)


def steps_of(folder: Path, kind: Kind) -> list[tuple[int, int]]:
    """Steps of checkpoints and at which that was told of them."""
    records = [record for record in story(folder) if record.kind is kind and record.fields["tag"]]
    return [(Tag.parse(record.fields["tag"]).step, record.step) for record in records]


def test_a_certificate_that_had_no_room_is_written_later(corpus: Path, tmp_path: Path) -> None:
    config = watched(Layout(data=2, zero=1), tmp_path, corpus, horizon=2, threshold=1e9)
    config = changed(config, run={"steps": 50})
    ends = run_distributed(run_with_one_failure_of, 2, config, "pretrain.checkpoint.writer", "certify")
    assert ends == ["finished"] * 2
    assert "quarantined" not in kinds(tmp_path)
    certified = dict(steps_of(tmp_path, Kind.CERTIFIED))
    assert set(certified) == {10, 20, 30, 40, 50}
    assert 20 + RETRY <= certified[10] < 50  # read again by step 20, then tried again, well before the end


def test_a_candidate_that_retention_has_removed_meanwhile_is_not_tried_again(
    corpus: Path, tmp_path: Path
) -> None:
    config = watched(Layout(), tmp_path, corpus, horizon=2, threshold=1e9)
    config = changed(config, run={"steps": 60}, checkpoint={"every_steps": 4, "keep_last": 1})
    (end,) = run_distributed(run_and_listen, 1, config)
    assert end.count("could not be certified now") == 1
    assert kinds(tmp_path)[-1] == "done"


def run_and_listen(config: RunConfig) -> str:
    """What the journal is told."""
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileLogger, "event", lambda journal, step, text: told.append(text))
        run_with_one_failure_of(config, "pretrain.checkpoint.writer", "certify", retry=30)
    return "; ".join(told)


def test_a_checkpoint_that_had_no_room_is_taken_some_steps_later(corpus: Path, tmp_path: Path) -> None:
    config = watched(Layout(data=2, zero=1), tmp_path, corpus)
    ends = run_distributed(
        run_with_one_failure_of, 2, config, "pretrain.checkpoint.rank_files", "write_state"
    )
    assert ends == ["finished"] * 2
    assert [step for step, _ in steps_of(tmp_path, Kind.SEALED)] == [
        10 + BACKGROUND_STEPS,
        20,
        30,
    ]  # when the failure is known
