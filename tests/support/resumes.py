"""A run that is stopped twice on its way, and what is compared of it with one that is not."""

from collections.abc import Sequence
from pathlib import Path

from support.distributed import run_distributed
from support.runs import metrics, run_and_stop, run_to_end

from pretrain.config.run import RunConfig


def course(folder: Path) -> dict[str, dict[int, float]]:
    """It returns what a run has consumed and come to, step by step."""
    keys = ("samples", "tokens", "loss", "gradient_norm", "validation_loss")
    return {key: metrics(folder, key) for key in keys}


def stop_twice(parts: Sequence[tuple[RunConfig, int]]) -> None:
    """It runs to the end, and is stopped after steps 2 and 7, which are in the first epoch and the second: each part
    with its own configuration, on as many ranks."""
    for (config, ranks), step in zip(parts, (1, 6, None), strict=True):
        answers = (
            run_distributed(run_and_stop, ranks, config, step, ranks - 1)
            if step
            else run_distributed(run_to_end, ranks, config)
        )
        assert set(answers) == {"preempted" if step else "finished"}
