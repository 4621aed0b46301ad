"""What becomes of a sample follows from its chance alone, and is spread evenly over what is allowed."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.features import features_config

from data_pipeline.reading.order import SampleOrder, SourceShape
from data_pipeline.speech.augmentation import Augmentation
from data_pipeline.speech.config import AugmentationConfig

CHANCES = SampleOrder(1, (SourceShape("any", 10),)).chances(np.arange(6000)).tolist()
"""As the samples of a run have them."""

SPEEDS = (0.9, 1.0, 1.1)
WARP = (0.8, 1.25)

chances = st.integers(0, 2**64 - 1)


def augmentation(**settings: Any) -> Augmentation:
    return Augmentation(AugmentationConfig(**settings), 16_000)


def masks(
    chance: int, frames: int = 100, mel_bins: int = 20, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """It returns which mel bins and which frames are masked."""
    masked = augmentation(**settings).masked(torch.ones(frames, mel_bins), chance) == 0
    return masked.all(0).numpy(), masked.all(1).numpy()


def evenly(counts: Counter[int], values: range, drawn: int) -> bool:
    """Whether each value came about as often: within five standard deviations of a count."""
    expected = drawn / len(values)
    return set(counts) == set(values) and all(
        abs(count - expected) < 5 * expected**0.5 for count in counts.values()
    )


@given(chance=chances, others=st.lists(chances, max_size=5))
def test_chance_alone_decides(chance: int, others: list[int]) -> None:
    """Not what comes before in a batch, and not which rank or process asks."""
    settings = {
        "speeds": SPEEDS,
        "frequency_warp": WARP,
        "frequency_masks": 2,
        "time_masks": 2,
        "time_share": 0.5,
    }
    features = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    one, other = augmentation(**settings), augmentation(**settings)
    for unrelated in others:
        one.speed(unrelated), one.warp(unrelated), one.masked(features, unrelated)
    assert one.speed(chance) == other.speed(chance)
    assert one.warp(chance) == other.warp(chance)
    assert torch.equal(one.masked(features, chance), other.masked(features, chance))


def test_what_chance_makes_of_a_sample_stays_the_same_in_all_versions() -> None:
    """A run that is taken up with another numpy goes on as it would have."""
    heard = augmentation(speeds=tuple(number / 10 for number in range(5, 21)))
    assert [heard.speed(chance) for chance in (0, 1, 2**63, 2**64 - 1)] == [0.5, 0.9, 2.0, 0.8]
    warps = [augmentation(frequency_warp=WARP).warp(chance) for chance in (0, 1, 2**63, 2**64 - 1)]
    assert warps == [1.1664951099271939, 0.9391917100336256, 0.9620595263413987, 1.0101901015984753]
    bands, spans = masks(7, mel_bins=80, frequency_masks=1, time_masks=1, time_share=0.5)
    assert [[*masked.nonzero()[0][[0, -1]].tolist()] for masked in (bands, spans)] == [[21, 44], [24, 49]]


def test_nothing_is_altered_without_chance() -> None:
    features = torch.randn(50, 20)
    heard = augmentation(speeds=SPEEDS, frequency_warp=WARP, frequency_masks=2, time_masks=2)
    assert heard.speed(None) == heard.warp(None) == 1.0
    assert torch.equal(heard.masked(features, None), features)
    assert augmentation().speed(5) == augmentation().warp(5) == 1.0
    assert torch.equal(augmentation().masked(features, 5), features)


def test_what_is_masked_was_not_altered_where_it_came_from() -> None:
    features = torch.ones(50, 20)
    assert augmentation(frequency_masks=9, time_masks=9).masked(features, 3).sum() < features.sum() == 1000


def test_each_speed_comes_as_often() -> None:
    drawn = Counter(augmentation(speeds=SPEEDS).speed(chance) for chance in CHANCES)
    assert evenly(
        Counter({SPEEDS.index(speed): count for speed, count in drawn.items()}), range(3), len(CHANCES)
    )


def test_frequencies_are_scaled_by_any_factor_of_the_range() -> None:
    drawn = np.array([augmentation(frequency_warp=WARP).warp(chance) for chance in CHANCES])
    assert WARP[0] <= drawn.min() < drawn.max() <= WARP[1]
    tenths = Counter(np.digitize(drawn, np.linspace(*WARP, 11)[1:-1]).tolist())
    assert evenly(tenths, range(10), len(CHANCES))


def test_bands_and_spans_have_any_width_as_often_and_lie_anywhere() -> None:
    bands, spans, places = Counter[int](), Counter[int](), Counter[int]()
    for chance in CHANCES:
        bins, frames = masks(chance, frequency_masks=1, frequency_width=7, time_masks=1, time_width=10)
        bands[int(bins.sum())] += 1
        spans[int(frames.sum())] += 1
        if bins.sum() == 7:
            places[int(bins.argmax())] += 1
        for masked in (bins, frames):
            assert np.count_nonzero(np.diff(np.concatenate([[0], masked, [0]]))) in (0, 2), "one piece"
    assert evenly(bands, range(8), len(CHANCES))
    assert evenly(spans, range(11), len(CHANCES))
    assert evenly(places, range(14), bands[7])


def test_speed_warp_and_masks_have_nothing_to_do_with_each_other() -> None:
    """Else all samples of a speed would be masked in the same places, or warped alike."""
    heard = augmentation(speeds=SPEEDS, frequency_warp=WARP, frequency_masks=1, frequency_width=2)
    drawn = Counter(
        (
            heard.speed(chance),
            heard.warp(chance) < sum(WARP) / 2,
            int(masks(chance, frequency_masks=1, frequency_width=2)[0].sum()),
        )
        for chance in CHANCES
    )
    assert len(drawn) == 18
    assert max(drawn.values()) - min(drawn.values()) < 10 * (len(CHANCES) / 18) ** 0.5


@given(
    chance=chances,
    frames=st.integers(1, 60),
    mel_bins=st.integers(4, 30),
    share=st.floats(0, 1),
    width=st.integers(0, 100),
    count=st.integers(0, 4),
)
def test_masks_are_no_wider_than_allowed(
    chance: int, frames: int, mel_bins: int, share: float, width: int, count: int
) -> None:
    settings = {"time_width": width, "time_share": share, "frequency_width": width}
    _, spans = masks(chance, frames, mel_bins, time_masks=count, **settings)
    assert spans.sum() <= count * min(width, int(share * frames))
    bands, _ = masks(chance, frames, mel_bins, frequency_masks=count, **settings)
    assert bands.sum() <= count * min(width, mel_bins)


def test_a_range_that_falls_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"from the least factor to the greatest, as \[0\.8, 1\.2\]"):
        AugmentationConfig(frequency_warp=(1.2, 0.8))


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.0, 1.1, 1.03, 2.0])
def test_audio_at_another_speed_is_shorter_and_higher(speed: float) -> None:
    tone = torch.sin(2 * torch.pi * 400 * torch.arange(16_000) / 16_000)
    heard = augmentation(speeds=(speed,)).perturbed(tone, speed)
    assert heard.dtype == torch.float32
    assert abs(len(heard) - 16_000 / speed) <= 1
    loudest = torch.fft.rfft(heard * torch.hann_window(len(heard))).abs().argmax() * 16_000 / len(heard)
    assert abs(loudest - 400 * speed) < 2
    assert heard[1000:-1000].abs().max() == pytest.approx(1.0, abs=0.01)


def test_lengths_are_told_before_audio_is_read() -> None:
    heard, samples_NK = augmentation(speeds=SPEEDS), np.arange(1, 1001, dtype=np.int32)[:, None]
    lengths_NK = heard.lengths(samples_NK, np.array(CHANCES[:1000], np.uint64))
    for number in range(0, 1000, 37):
        audio = heard.perturbed(torch.zeros(number + 1), heard.speed(CHANCES[number]))
        assert abs(lengths_NK[number, 0] - len(audio)) <= 1


@given(samples=st.integers(0, 2002), speed=st.sampled_from((0.5, 0.8, 0.9333, *SPEEDS, 1.03, 2.0)))
@example(samples=2002, speed=0.8)  # half a sample too many
def test_no_sample_becomes_longer_than_the_configuration_says(samples: int, speed: float) -> None:
    data = features_config(
        sample_rate=1000,
        mel_bins=4,
        max_seconds=2.002,
        window_seconds=0.01,
        hop_seconds=0.001,
        augmentation={"speeds": (speed, 1.0)},
    )
    heard = Augmentation(data.augmentation, 1000).perturbed(torch.zeros(samples), speed)
    assert data.frames(len(heard)) <= data.max_frames
    assert abs(len(heard) - samples / speed) <= 0.5
