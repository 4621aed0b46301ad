"""Every utterance comes once an epoch, altered alike under any number of ranks and wherever a run is taken up."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.speech import speech_config, utterance_numbers, write_speech

from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.source import SpeechSource

UTTERANCES, STEP = 96, 24
ALTERED = {
    "speeds": [0.9, 1.0, 1.1],
    "frequency_warp": [0.8, 1.25],
    "frequency_masks": 1,
    "frequency_width": 3,
    "time_masks": 1,
    "time_share": 0.3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_speech(folder, 37, first=1000, split="validation")
    return write_speech(folder, UTTERANCES)


def plan_of(data: Path, **settings: object) -> SpeechConfig:
    return speech_config(data, augmentation=ALTERED, max_seconds=0.7, **settings)


def steps_from(
    plan: SpeechConfig, state: Any, size: int, steps: int
) -> Iterator[tuple[list[SpeechBatch], Any]]:
    """The micro-batches of all ranks of each step, and the state behind it."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                closing(BatchStream(SpeechSource(), plan, seed=3, data_rank=rank, data_size=size))
            )
            for rank in range(size)
        ]
        for stream in ranks:
            if state is not None:
                stream.seek(state)
        for _ in range(steps):
            batches = [batch for stream in ranks for batch in next(stream)]
            states = [stream.state() for stream in ranks]
            assert all(state == states[0] for state in states)
            yield batches, states[0]


def heard(step: list[SpeechBatch]) -> dict[int, bytes]:
    """It returns the features of each utterance of a step, by its number."""
    rows = [
        features[:frames].numpy().tobytes()
        for batch in step
        for features, frames in zip(batch.features_BTM, batch.frames_B.tolist(), strict=True)
    ]
    numbers = utterance_numbers(step)
    assert len({*numbers}) == len(numbers)
    return dict(zip(numbers, rows, strict=True))


@pytest.fixture(scope="module")
def unbroken(data: Path) -> list[dict[int, bytes]]:
    """The steps of two epochs."""
    return [heard(batches) for batches, _ in steps_from(plan_of(data), None, 1, 2 * UTTERANCES // STEP)]


layouts = st.sampled_from([(1, 1), (1, 4), (2, 12), (2, 3), (3, 4), (6, 4), (12, 1)])


@settings(max_examples=5)
@given(parts=st.lists(st.tuples(layouts, st.integers(1, 4)), min_size=1, max_size=3))
def test_every_utterance_once_an_epoch_under_any_ranks_and_resume_points(
    data: Path, unbroken: list[dict[int, bytes]], parts: list[tuple[tuple[int, int], int]]
) -> None:
    """Each part of the run goes on with other ranks and micro-batches from the state of the last; to the last bit it
    is heard as in one run without a break."""
    steps = len(unbroken)
    seen: list[dict[int, bytes]] = []
    state: Any = None
    for (size, micro), count in [*parts, ((1, 4), steps)]:
        plan = plan_of(data, micro_batch_size=micro)
        for batches, behind in steps_from(plan, state, size, min(count, steps - len(seen))):
            seen.append(heard(batches))
            state = behind
    assert seen == unbroken
    for epoch in (seen[: steps // 2], seen[steps // 2 :]):
        assert sorted(number for step in epoch for number in step) == list(range(UTTERANCES))


def test_an_utterance_is_altered_anew_in_each_epoch(unbroken: list[dict[int, bytes]]) -> None:
    half = len(unbroken) // 2
    first, second = (
        {number: row for step in epoch for number, row in step.items()}
        for epoch in (unbroken[:half], unbroken[half:])
    )
    assert sum(first[number] == second[number] for number in range(UTTERANCES)) < UTTERANCES / 10


def test_validation_has_each_utterance_once_as_it_is(data: Path) -> None:
    plain = speech_config(data)
    for size in (1, 3):
        seen: dict[int, torch.Tensor] = {}
        masked = 0
        for rank in range(size):
            for plan in (plain, plan_of(data)):
                with closing(
                    ValidationSet(SpeechSource(), plan, samples=None, data_rank=rank, data_size=size)
                ) as validation:
                    for step in validation:
                        for batch in step:
                            for row, number in enumerate(utterance_numbers([batch])):
                                features = batch.features_BTM[row, : int(batch.frames_B[row])]
                                masked += number < 0
                                assert torch.equal(seen.setdefault(number, features), features)
        assert sorted(number for number in seen if number >= 0) == list(range(1000, 1037))
        assert masked == 2 * (2 * STEP - 37)


def test_little_of_a_batch_is_padding(data: Path) -> None:
    def padding(plan: SpeechConfig) -> float:
        batches = [batch for step, _ in steps_from(plan, None, 1, UTTERANCES // STEP) for batch in step]
        return 1 - sum(batch.tokens for batch in batches) / sum(
            batch.features_BTM[..., 0].numel() for batch in batches
        )

    assert (
        padding(speech_config(data))
        < 0.07
        < 0.2
        < padding(speech_config(data, shuffle=False, micro_batch_size=STEP))
    )
