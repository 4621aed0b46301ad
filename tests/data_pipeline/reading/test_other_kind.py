"""Data that is no text flows through streams by its `Source` alone: order, resume, skip, damage, validation.

A sample is a wave of its own length with one label, so a batch has padding, a mask as a second input, and one target
a sample; nothing of it is a token.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Generator, Tensor

from data_pipeline.batches import Batch
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.reading.batches import Batches, WrappedBatches
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.source import Baseline, Source

SAMPLES = 30
FIELDS = ("label", "wave")


class WaveManifest(Manifest):
    kind: Literal["waves"] = "waves"
    rate: int
    label_variance: float | None = None


class WaveConfig(DataConfig):
    kind: Literal["waves"] = Field(default="waves", exclude=True)
    longest: int

    @property
    def tokens_per_sample(self) -> int:
        return self.longest


@dataclass(frozen=True)
class WaveBatch:
    waves_BT: Tensor
    mask_BT: Tensor
    labels_B: Tensor
    weights_B: Tensor
    damaged: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.waves_BT, self.mask_BT)

    @property
    def labels(self) -> tuple[Tensor, ...]:
        return (self.labels_B, self.weights_B)

    @property
    def samples(self) -> int:
        return len(self.labels_B)

    @property
    def tokens(self) -> int:
        return int(self.mask_BT.sum())

    @property
    def target_weight(self) -> float:
        return float(self.weights_B.sum())

    def scaled(self, factor: float) -> "WaveBatch":
        return replace(self, weights_B=self.weights_B * factor)


class WaveSource(Source[WaveManifest, WaveConfig, WaveBatch]):
    manifest_type = WaveManifest

    def facts(self, manifest: WaveManifest) -> dict[str, Any]:
        return {"rate": manifest.rate}

    def check(self, dataset: Dataset[WaveManifest], data: WaveConfig) -> None:
        if data.longest < 1:
            raise DataError(f"{dataset.name}: data.longest leaves nothing of a wave")

    def collator(self, manifest: WaveManifest, data: WaveConfig) -> Callable[[Sequence[Sample]], WaveBatch]:
        def collate(samples: Sequence[Sample]) -> WaveBatch:
            waves = [torch.tensor(wave(sample)[: data.longest]) for sample in samples]
            waves_BT = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
            lengths_B = torch.tensor([len(one) for one in waves])
            return WaveBatch(
                waves_BT,
                torch.arange(waves_BT.shape[1]) < lengths_B[:, None],
                torch.tensor([label(sample) for sample in samples]),
                torch.tensor([float(bool(sample.fields)) for sample in samples]),
                tuple(sample.damage for sample in samples if sample.damage),
            )

        return collate

    def describer(self, dataset: Dataset[WaveManifest]) -> Callable[[Sample], str]:
        return lambda sample: f"{len(wave(sample))} values labelled {label(sample)}"

    def baseline(self, manifest: WaveManifest) -> Baseline | None:
        variance = manifest.label_variance
        return None if variance is None else Baseline("the mean", variance)

    def shuffle_targets(self, batch: WaveBatch, row: int, generator: Generator) -> WaveBatch:
        return batch

    def randomise(
        self, batch: WaveBatch, manifest: WaveManifest, row: int, generator: Generator
    ) -> WaveBatch:
        waves_BT = batch.waves_BT.clone()
        waves_BT[row] = torch.randn(waves_BT.shape[1], generator=generator)
        return replace(batch, waves_BT=waves_BT)


def wave(sample: Sample) -> np.ndarray:
    return np.frombuffer(sample.fields[1], "<f4") if sample.fields else np.zeros(1, "<f4")


def label(sample: Sample) -> int:
    return int.from_bytes(sample.fields[0], "little") if sample.fields else 0


def write_split(
    folder: Path,
    samples: int = SAMPLES,
    *,
    first: int = 1,
    split: Literal["train", "validation"] = "train",
    rate: int = 8000,
) -> Path:
    """Sample number i is a wave of 1 + i % 5 values, all i, with label i."""
    (folder / split).mkdir(parents=True)
    with ShardWriter(folder / split, "waves", 7) as writer:
        for number in range(first, first + samples):
            values = np.full(1 + number % 5, number, "<f4")
            fields = {"wave": values.tobytes(), "label": number.to_bytes(2, "little")}
            writer.write(f"wave-{number:06d}", fields)
        shards = writer.finish()
    manifest = WaveManifest(
        split=split,
        documents=samples,
        samples=samples,
        fields=FIELDS,
        shards=shards,
        rate=rate,
        label_variance=2.5 if split == "validation" else None,
    )
    (folder / split / "manifest.json").write_text(manifest.model_dump_json())
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_split(tmp_path / "data")
    return write_split(tmp_path / "data", 5, first=501, split="validation")


def config(*paths: Path, **settings: Any) -> WaveConfig:
    sources = [{"path": str(path)} for path in paths]
    defaults = {"longest": 4, "micro_batch_size": 2, "global_batch_size": 12}
    return WaveConfig.model_validate({"sources": sources, **defaults, **settings})


def open_stream(plan: WaveConfig, *, rank: int = 0, size: int = 1) -> BatchStream[WaveManifest, WaveBatch]:
    return BatchStream(WaveSource(), plan, seed=3, data_rank=rank, data_size=size)


def numbers(step: Sequence[WaveBatch]) -> list[int]:
    return [int(number) for batch in step for number in batch.labels_B]


def test_batches_are_what_the_source_makes_of_the_samples(data: Path) -> None:
    with closing(open_stream(config(data))) as stream:
        step = next(stream)
        assert stream.manifest.rate == 8000
        assert isinstance(stream.source, WaveSource)
    assert len(step) == 6
    for batch in step:
        lengths = [min(1 + number % 5, 4) for number in numbers([batch])]
        assert batch.mask_BT.sum(dim=1).tolist() == lengths
        assert batch.tokens == sum(lengths)
        rows = zip(batch.waves_BT, batch.mask_BT, batch.labels_B, strict=True)
        assert all(bool((wave[mask] == number).all()) for wave, mask, number in rows)


def test_an_epoch_has_each_sample_once_over_all_ranks(data: Path) -> None:
    seen: list[int] = []
    for rank in range(3):
        with closing(open_stream(config(data), rank=rank, size=3)) as stream:
            seen += [number for _ in range(5) for number in numbers(next(stream))]
    assert sorted(seen) == sorted([*range(1, SAMPLES + 1)] * 2)


def test_resumed_it_goes_on_exactly_and_a_skip_jumps_over(data: Path) -> None:
    plan = config(data)
    with closing(open_stream(plan)) as stream:
        plain = [number for _ in range(6) for number in numbers(next(stream))]
    with closing(open_stream(plan)) as stream:
        assert numbers(next(stream)) == plain[:12]
        stream.skip([(14, 20)])
        state = json.loads(json.dumps(stream.state()))
        assert state["data"]["kind"] == "waves"
        assert state["data"]["rate"] == 8000
    with closing(open_stream(plan.model_copy(update={"micro_batch_size": 3}))) as stream:
        stream.seek(state)
        expected = plain[12:14] + [number for number in plain[20:] if number not in plain[14:20]]
        assert numbers(next(stream)) == expected[:12]
        assert stream.sample_range() == (12, 30)
        assert numbers(next(stream)) == expected[12:24]


def test_a_damaged_sample_is_masked_and_named(data: Path) -> None:
    path = data / "train" / "waves-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"wave-000003.wave") + 512] ^= 1
    path.write_bytes(content)
    with closing(open_stream(config(data, shuffle=False))) as stream:
        step = next(stream)
    assert numbers(step) == [1, 2, 0, *range(4, 13)]
    assert [weight for batch in step for weight in batch.weights_B.tolist()] == [1, 1, 0, *[1] * 9]
    (name,) = [name for batch in step for name in batch.damaged]
    assert name.endswith("waves-000000.tar: sample 2 at byte 4096: checksum mismatch")


def test_facts_that_differ_are_named(data: Path, tmp_path: Path) -> None:
    other = write_split(tmp_path / "other", rate=16000)
    with pytest.raises(DataError, match=r"other/train: rate is 16000, but .*data/train has 8000"):
        open_stream(config(data, other))
    write_split(other, 5, split="validation", rate=16000)
    with pytest.raises(DataError, match="rate is 16000"):
        validation_set(config(data, validation=[{"path": str(other)}]))
    with closing(open_stream(config(data))) as stream:
        state = stream.state()
    with (
        closing(open_stream(config(other))) as stream,
        pytest.raises(DataError, match="the data differs in rate: it was 8000, now it is 16000"),
    ):
        stream.seek(state)


def test_what_the_source_refuses_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match=r"data\.longest leaves nothing"):
        open_stream(config(data, longest=0))


def test_excerpts_are_in_the_words_of_the_source(data: Path) -> None:
    with closing(open_stream(config(data))) as stream:
        first = numbers(next(stream))
        told = [excerpt.text for excerpt in stream.excerpts(range(12))]
    assert told == [f"{1 + number % 5} values labelled {number}" for number in first]


def validation_set(plan: WaveConfig, rank: int = 0, size: int = 1) -> ValidationSet:
    return ValidationSet(WaveSource(), plan, samples=None, data_rank=rank, data_size=size)


def test_validation_is_padded_with_samples_of_no_weight(data: Path) -> None:
    weights: list[float] = []
    seen: list[int] = []
    for rank in range(2):
        with closing(validation_set(config(data), rank, 2)) as validation:
            (step,) = validation
            assert validation.baseline == Baseline("the mean", 2.5)
        seen += numbers(step)
        weights += [weight for batch in step for weight in batch.weights_B.tolist()]
    assert sorted(seen) == [*[0] * 7, *range(501, 506)]
    assert [bool(number) for number in seen] == [bool(weight) for weight in weights]


def test_fields_in_another_order_than_the_shards_have_are_refused(data: Path) -> None:
    path = data / "train" / "manifest.json"
    path.write_text(path.read_text().replace('["label","wave"]', '["wave","label"]'))
    with pytest.raises(
        DataError, match="fields must be in the order of the tar file, each once, label, wave"
    ):
        open_stream(config(data))


def test_several_validation_datasets_have_no_baseline(data: Path) -> None:
    plan = config(data, validation=[{"path": str(data)}, {"path": str(data)}])
    with closing(validation_set(plan)) as validation:
        assert validation.baseline is None


class Mute(WrappedBatches):
    """A stream whose targets have no weight."""

    def __next__(self) -> Sequence[Batch]:
        return [batch.scaled(0.0) for batch in super().__next__()]


def test_a_stream_around_another_one_alters_what_it_wants_to(data: Path) -> None:
    plain, within = (open_stream(config(data)) for _ in range(2))
    wrapped: Batches = Mute(within)
    with closing(plain), closing(wrapped):
        step = next(iter_of(wrapped))
        assert numbers(step) == numbers(next(plain))
        assert sum(batch.target_weight for batch in step) == 0
        for stream in (plain, wrapped):
            stream.skip([(20, 30)])
        assert wrapped.state() == plain.state()
        assert wrapped.fingerprint == plain.fingerprint
        assert wrapped.sample_range() == plain.sample_range() == (0, 12)
        assert wrapped.unskipped([(18, 31)]) == [18, 19, 30]
        assert list(wrapped.excerpts([4])) == list(plain.excerpts([4]))
        assert wrapped.take_wait_seconds() > 0
        wrapped.seek({**plain.state(), "position": 0})
        assert numbers(next(wrapped)) == numbers(step)


def iter_of(stream: Batches) -> Iterator[Sequence[Batch]]:
    """As a `for` loop does."""
    return iter(stream)
