"""Speech as a kind of data: what is refused, how people read it, and how batches are made and spoiled."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.speech import DIGITS, LONGEST, RATE, samples_of, speech_config, tone, write_speech

from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.storage import LocalFolder
from data_pipeline.speech.audio import decode_flac, encode_flac
from data_pipeline.speech.augmentation import Augmentation
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.collate import SpeechCollator
from data_pipeline.speech.config import frame_samples, most_units, rounded_up
from data_pipeline.speech.features import LogMel, normalized
from data_pipeline.speech.manifest import SpeechManifest
from data_pipeline.speech.source import SpeechSource
from data_pipeline.speech.units import CharacterUnits

SOURCE = SpeechSource()


def dataset(folder: Path) -> Dataset[SpeechManifest]:
    return Dataset(LocalFolder(folder / "train"), SpeechManifest)


def opened(*folders: Path, **settings: object) -> BatchStream[SpeechManifest, SpeechBatch]:
    return BatchStream(SOURCE, speech_config(*folders, **settings), seed=0, data_rank=0, data_size=1)


def changed(folder: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> Path:
    """It changes the facts of a manifest, whose fingerprint stays right."""
    path = folder / split / "manifest.json"
    facts = json.loads(path.read_text())
    del facts["fingerprint"]
    change(facts)
    facts["fingerprint"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"sample_rate": 16_000},
            "has audio of 8000 Hz, but data.sample_rate is 16000; set it to 8000, or prepare",
        ),
        (
            {"max_seconds": 0.5},
            r"of 0\.60 seconds, but data.max_seconds is 0.5; set it to 0\.60, or prepare",
        ),
    ],
)
def test_what_the_configuration_does_not_say_is_refused(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        opened(write_speech(tmp_path / "a", 60), **settings)


def test_the_length_that_is_told_is_long_enough(tmp_path: Path) -> None:
    """The longest utterance is rounded up: 4760 samples are 0.595 seconds."""
    write_speech(tmp_path / "a", 60)
    opened(tmp_path / "a", max_seconds=0.60).close()
    for seconds in (0.595, 1 / 3, 17.1234567, 86_399.999):
        assert seconds <= float(rounded_up(seconds)) < seconds + 0.02


def test_other_units_are_refused(tmp_path: Path) -> None:
    write_speech(tmp_path / "a", 30)
    other = CharacterUnits("0123456789x")
    entry = {"file": "units.json", "sha256": other.digest, "count": other.count}
    changed(write_speech(tmp_path / "b", 30), lambda facts: facts.update(units=entry))
    with pytest.raises(DataError, match=r"b/units.json: not the units that .*b/train was made with"):
        opened(tmp_path / "b")
    (tmp_path / "b/units.json").write_bytes(other.content)
    with pytest.raises(
        DataError, match=r"made with the units .* prepare one with the units of the other: --units"
    ):
        opened(tmp_path / "a", tmp_path / "b")
    write_speech(tmp_path / "c", 5, split="validation")
    plan = speech_config(tmp_path / "b", validation=[{"path": str(tmp_path / "c")}])
    with pytest.raises(DataError, match="made with the units"):
        ValidationSet(SOURCE, plan, samples=None, data_rank=0, data_size=1)


def test_another_rate_in_a_mixture_is_refused(tmp_path: Path) -> None:
    write_speech(tmp_path / "a", 30)
    changed(write_speech(tmp_path / "b", 30), lambda facts: facts.update(sample_rate=16_000))
    with (
        closing(dataset(tmp_path / "b")) as other,
        pytest.raises(DataError, match="sample_rate is 16000, but a has"),
    ):
        SOURCE.check_together(other, "a", dataset(tmp_path / "a").manifest)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda content: content[:-1], "changed since it was indexed"),
        (lambda content: content[:-1] + b"x", "changed since the manifest"),
    ],
)
def test_lengths_that_were_changed_are_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes], told: str
) -> None:
    path = write_speech(tmp_path / "a", 20) / "train/lengths.npy"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=rf"lengths.npy: {told}"):
        opened(tmp_path / "a")


@pytest.mark.parametrize("facts", [{"longest_seconds": 0.3}, {"unit_total": 79}, {"seconds": 5.0}])
def test_lengths_that_the_manifest_does_not_know_are_refused(
    tmp_path: Path, facts: dict[str, object]
) -> None:
    folder = changed(write_speech(tmp_path / "a", 20), lambda stated: stated.update(facts))
    with pytest.raises(
        DataError, match=r"lengths.npy: has utterances of up to .* and 80 units, the manifest says"
    ):
        opened(folder)


def test_buckets_are_samples_of_audio(tmp_path: Path) -> None:
    with closing(dataset(write_speech(tmp_path / "a", 120))) as data:
        lengths_NK = SOURCE.buckets(data, speech_config("a")).lengths_NK
    assert lengths_NK.tolist() == [[samples_of(number)] for number in range(120)]


# Batches


def stored(samples: int, text: str = "0123") -> tuple[memoryview, ...]:
    units = np.array(DIGITS.encode(text), "<u2").tobytes()
    return memoryview(encode_flac(tone(samples / RATE), RATE)), memoryview(units)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> SpeechManifest:
    with closing(dataset(write_speech(tmp_path_factory.mktemp("speech"), 60))) as data:
        return data.manifest


def collated(manifest: SpeechManifest, *samples: Sample, **settings: object) -> SpeechBatch:
    return SpeechCollator(manifest, speech_config("a", **settings))(samples)


def test_utterances_are_padded_to_the_longest(manifest: SpeechManifest) -> None:
    plan = speech_config("a")
    batch = collated(manifest, Sample("a", stored(2000, "12")), Sample("a", stored(4000, "789")))
    assert batch.frames_B.tolist() == [plan.frames(2000), plan.frames(4000)]
    for row, samples in enumerate((2000, 4000)):
        wave_N = torch.from_numpy(tone(samples / RATE) / np.float32(32768))
        expected = normalized(LogMel(plan)(wave_N))
        assert torch.equal(batch.features_BTM[row, : len(expected)], expected)
        assert not batch.features_BTM[row, len(expected) :].any()
    assert batch.units_BU.tolist() == [[*DIGITS.encode("12"), 0], DIGITS.encode("789")]
    assert batch.lengths_B.tolist() == [2, 3]
    assert batch.weights_B.tolist() == [1, 1]
    assert (batch.tokens, batch.target_weight) == (int(batch.frames_B.sum()), 5)


def test_a_damaged_sample_is_a_silent_frame_without_weight(manifest: SpeechManifest) -> None:
    batch = collated(manifest, Sample("a", damage="a/speech-000000.tar: checksum"), Sample("padding"))
    assert batch.features_BTM.shape == (2, 1, 8)
    assert not batch.features_BTM.any()
    assert (batch.frames_B.tolist(), batch.lengths_B.tolist()) == ([1, 1], [0, 0])
    assert batch.weights_B.tolist() == [0, 0]
    assert batch.damaged == ("a/speech-000000.tar: checksum",)
    mixed = collated(manifest, Sample("a", stored(2000)), Sample("padding"))
    assert (mixed.weights_B.tolist(), mixed.lengths_B.tolist()) == ([1, 0], [4, 0])


def test_chance_alone_decides_what_becomes_of_a_sample(manifest: SpeechManifest) -> None:
    """Whichever other samples are in its micro-batch; without chance nothing happens to it."""
    masked = {"frequency_masks": 1, "frequency_width": 4}
    altered = {"augmentation": {"speeds": [0.9, 1.0, 1.1], "frequency_warp": [0.8, 1.25], **masked}}
    samples = [Sample("a", stored(3000), chance=chance) for chance in range(12)]
    whole = collated(manifest, *samples, **altered)
    assert len({*whole.frames_B.tolist()}) == 3
    for row, sample in enumerate(samples):
        alone = collated(manifest, sample, **altered)
        assert torch.equal(alone.features_BTM[0], whole.features_BTM[row, : int(alone.frames_B)])
    plain = [collated(manifest, Sample("a", stored(3000)), **settings) for settings in ({}, altered)]
    assert torch.equal(plain[0].features_BTM, plain[1].features_BTM)
    augmentation = Augmentation(speech_config("a", **altered).augmentation, RATE)
    speeds = [augmentation.speed(chance) for chance in range(12)]
    assert whole.frames_B.tolist() == [speech_config("a").frames(round(3000 / speed)) for speed in speeds]


def test_features_are_of_the_frequencies_that_chance_scales_by(manifest: SpeechManifest) -> None:
    settings = {"augmentation": {"frequency_warp": [0.8, 1.25]}}
    found = collated(manifest, Sample("a", stored(3000), chance=7), **settings).features_BTM[0]
    data = speech_config("a", **settings)
    warp = Augmentation(data.augmentation, RATE).warp(7)
    audio_N = torch.from_numpy(decode_flac(stored(3000)[0], RATE, 3000))
    assert torch.equal(found, normalized(LogMel(data)(audio_N, warp)))
    assert not torch.equal(found, normalized(LogMel(data)(audio_N)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ((memoryview(b"no audio"), stored(2000)[1]), "is no FLAC"),
        ((stored(2000)[0][:-100], stored(2000)[1]), "is no FLAC"),
        ((stored(9000)[0], stored(2000)[1]), "and 9000 samples, not FLAC .* at most 5600 samples"),
        ((stored(2000)[0], memoryview(b"")), "has 0 bytes of units"),
        ((stored(2000)[0], memoryview(b"\1\0\2")), "has 3 bytes of units"),
        ((stored(2000)[0], memoryview(b"\1\0\0\0")), "has the unit 0, but units are 1 to 10"),
        ((stored(2000)[0], memoryview(b"\1\0\13\0")), "has the unit 11, but units are 1 to 10"),
    ],
)
def test_a_sample_that_is_not_what_the_manifest_says_is_named(
    manifest: SpeechManifest, fields: tuple[memoryview, ...], told: str
) -> None:
    with pytest.raises(DataError, match=rf"a/speech-000000.tar: sample 3: .*{told}"):
        collated(manifest, Sample("a", fields, shard="speech-000000.tar", number=3))


def test_a_mixture_hears_utterances_longer_than_its_first_dataset_has(tmp_path: Path) -> None:
    (short,) = [number for number in range(500) if samples_of(number) == 1600][:1]
    folders = [
        write_speech(tmp_path / "short", 1, first=short),
        write_speech(tmp_path / "long", 40),
    ]
    with closing(opened(*folders)) as stream:
        lengths = {length for _ in range(4) for batch in next(stream) for length in batch.frames_B.tolist()}
        shown = {excerpt.text for excerpt in stream.excerpts(range(60))}
    assert len(lengths) > 5
    assert len(shown) > 5


def test_people_read_seconds_and_transcripts(tmp_path: Path) -> None:
    write_speech(tmp_path / "a", 20)
    with closing(opened(tmp_path / "a")) as stream:
        texts = [excerpt.text for excerpt in stream.excerpts(range(24))]
        assert stream.companions == {"units.json": DIGITS.content}
    seconds = {f"{number:04d}": samples_of(number) / RATE for number in range(20)}
    assert len({*texts}) == 20
    assert all(text == f"{seconds[text[-4:]]:.2f} s: {text[-4:]}" for text in texts)
    (tmp_path / "a/units.json").unlink()
    with closing(opened(tmp_path / "a")) as stream:
        assert stream.companions == {}
        with pytest.raises(DataError, match=r"units.json: is missing"):
            list(stream.excerpts([0]))


def test_shuffled_units_can_be_aligned_still(manifest: SpeechManifest) -> None:
    """They need no more blanks between equal units than before; the audio is the same."""
    batch = collated(manifest, Sample("a", stored(2000, "121212")), Sample("a", stored(2000, "12")))
    seen = set()
    for seed in range(20):
        spoiled = SOURCE.shuffle_targets(batch, 0, torch.Generator().manual_seed(seed))
        ids = spoiled.units_BU[0].tolist()
        assert sorted(ids) == sorted(batch.units_BU[0].tolist())
        assert all(one != other for one, other in pairwise(ids))
        assert torch.equal(spoiled.units_BU[1], batch.units_BU[1])
        assert torch.equal(spoiled.features_BTM, batch.features_BTM)
        seen.add(tuple(ids))
    assert batch.units_BU[0].tolist() == DIGITS.encode("121212")
    assert tuple(DIGITS.encode("212121")) in seen


def test_noise_is_as_long_as_what_it_replaces(manifest: SpeechManifest) -> None:
    batch = collated(manifest, Sample("a", stored(2000)), Sample("a", stored(4000)))
    spoiled = SOURCE.randomise(batch, manifest, 0, torch.Generator().manual_seed(0))
    frames = int(batch.frames_B[0])
    assert not torch.equal(spoiled.features_BTM[0], batch.features_BTM[0])
    assert not spoiled.features_BTM[0, frames:].any()
    assert torch.equal(spoiled.features_BTM[1], batch.features_BTM[1])
    assert torch.equal(replace(spoiled, features_BTM=batch.features_BTM).units_BU, batch.units_BU)


# Alignments


@given(
    stride=st.integers(1, 8),
    frame_seconds=st.floats(0.005, 0.12),
    fastest=st.sampled_from([1.0, 1.1, 1.5]),
    window=st.sampled_from([0.01, 0.025, 0.1]),
    rate=st.sampled_from([8000, 16_000]),
)
def test_a_model_aligns_just_when_no_utterance_has_too_few_outputs(
    stride: int, frame_seconds: float, fastest: float, window: float, rate: int
) -> None:
    """All lengths of audio are tried, each with as many units as it may have."""
    plan = speech_config(
        "a", sample_rate=rate, window_seconds=window, augmentation={"speeds": [1.0, fastest, 0.9]}
    )
    expected = True
    for samples in range(1, round(LONGEST * rate) + 1):
        outputs = -(-plan.frames(int(samples / fastest)) // stride)
        expected = expected and most_units(samples, rate, frame_seconds) <= outputs
    assert plan.aligns(stride, frame_seconds, LONGEST) == expected


def test_an_output_as_often_as_the_data_wants_is_often_enough() -> None:
    """With the window and hop of the defaults, where the stride is longer than the window."""
    for speeds, factor in (([1.0], 1.0), ([0.9, 1.0, 1.1], 1.1)):
        for stride in (3, 4, 8):
            plan = speech_config("a", sample_rate=16_000, augmentation={"speeds": speeds})
            assert plan.aligns(stride, stride * 0.01 * factor, 60.0)
            assert not plan.aligns(stride, stride * 0.009 * factor, 60.0)
    assert not speech_config("a", sample_rate=16_000).aligns(1, 0.01, 60.0), "windows reach beyond the end"
    assert frame_samples(16_000, 0.033) == 528
