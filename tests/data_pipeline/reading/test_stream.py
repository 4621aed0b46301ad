"""One global order for every world size, micro-batch, prefetch and resume point."""

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.numbered_data import LENGTH, VOCABULARY, config, numbers, write_split

from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.text.config import TextConfig
from data_pipeline.text.source import TextSource

SAMPLES = 30

layouts = st.sampled_from([(1, 1), (1, 12), (2, 3), (3, 4), (4, 1), (6, 2), (12, 1)])
"""Data-parallel sizes and micro-batch sizes that divide a global batch of 12."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_split(folder / "a", SAMPLES)
    write_split(folder / "a", 17, first=5001, split="validation")
    write_split(folder / "b", 11, first=1001)
    return folder


def open_stream(data: TextConfig, *, seed: int = 3, rank: int = 0, size: int = 1) -> BatchStream:
    return BatchStream(TextSource(), data, seed=seed, data_rank=rank, data_size=size)


def global_steps(data: TextConfig, count: int, *, size: int = 1, state: object = None) -> list[list[int]]:
    """The samples of `count` steps over all ranks, sorted within a step."""
    steps: list[list[int]] = [[] for _ in range(count)]
    for rank in range(size):
        with closing(open_stream(data, rank=rank, size=size)) as stream:
            if state is not None:
                stream.seek(state)
            for step in steps:
                step += numbers(next(stream))
    return [sorted(step) for step in steps]


@settings(max_examples=25)
@given(layout=layouts, prefetch=st.integers(0, 3))
def test_every_layout_sees_the_same_global_batches(
    data: Path, layout: tuple[int, int], prefetch: int
) -> None:
    size, micro = layout
    mixed = config(data / "a", data / "b", weights=(2, 1))
    cut = mixed.model_copy(update={"micro_batch_size": micro, "prefetch_steps": prefetch})
    assert global_steps(cut, 7, size=size) == global_steps(mixed, 7)


@settings(max_examples=20)
@given(layout=layouts)
def test_each_sample_once_per_epoch_over_all_ranks(data: Path, layout: tuple[int, int]) -> None:
    size, micro = layout
    steps = global_steps(config(data / "a", micro_batch_size=micro), 5, size=size)
    seen = sorted(number for step in steps for number in step)
    assert seen == sorted([*range(1, SAMPLES + 1)] * 2)


@settings(max_examples=25)
@given(
    stops=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    layout=layouts,
    prefetch=st.integers(0, 3),
    skip=st.lists(st.integers(0, 90).map(lambda start: [start, start + 5]), max_size=2),
)
def test_resumed_any_number_of_times_it_goes_on_exactly(
    data: Path, stops: list[int], layout: tuple[int, int], prefetch: int, skip: list[list[int]]
) -> None:
    """Each stop resumes from the state's JSON in a new stream; the last one with another world size."""
    plan = config(data / "a", prefetch_steps=prefetch)
    with closing(open_stream(plan)) as stream:
        stream.skip(skip)
        uninterrupted = [sorted(numbers(next(stream))) for _ in range(sum(stops) + 4)]
    with closing(open_stream(plan)) as stream:
        stream.skip(skip)
        state = stream.state()
    seen: list[list[int]] = []
    for stop in stops:
        with closing(open_stream(plan)) as stream:
            stream.seek(json.loads(json.dumps(state)))
            seen += [sorted(numbers(next(stream))) for _ in range(stop)]
            state = stream.state()
    size, micro = layout
    cut = plan.model_copy(update={"micro_batch_size": micro})
    seen += global_steps(cut, 4, size=size, state=state)
    assert seen == uninterrupted


@pytest.mark.parametrize(
    "odd",
    [{"position": value} for value in (-12, 10**30, 2**53, 4.5, True, "12", None)]
    + [{"skip": value} for value in ([[0, 2**40]], [[-5, 3]], [[9, 3]], "x", 7)]
    + [{"skip": [[0, 60]], "skip_for_good": [[0, 60]]}]
    + [{"data": value} for value in ([], "x", None)],
    ids=str,
)
def test_a_state_that_no_stream_had_is_refused_and_changes_nothing(
    data: Path, odd: dict[str, object]
) -> None:
    with closing(open_stream(config(data / "a"))) as stream:
        next(stream)
        state = stream.state()
        with pytest.raises(DataError, match="saved data position"):
            stream.seek({**state, **odd})
        assert stream.state() == state


def test_state_is_of_what_was_handed_out_not_of_what_was_prefetched(data: Path) -> None:
    with closing(open_stream(config(data / "a", prefetch_steps=5))) as stream:
        next(stream)
        assert stream.state()["position"] == 12
        assert stream.sample_range() == (0, 12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_skipped_draws_are_seen_by_no_rank(data: Path, size: int) -> None:
    plan = config(data / "a", micro_batch_size=1)
    with closing(open_stream(plan)) as stream:
        plain = [number for _ in range(5) for number in numbers(next(stream))]
    with closing(open_stream(plan)) as stream:
        stream.skip([[14, 20], [30, 31]])
        state = stream.state()
    again = [number for number in plain[31:] if number not in plain[14:20]]
    expected = plain[:14] + plain[20:30] + again[:12]
    steps = global_steps(plan, 3, size=size, state=state)
    assert steps == [sorted(expected[start : start + 12]) for start in (0, 12, 24)]


def test_skipping_what_is_past_changes_nothing(data: Path) -> None:
    with (
        closing(open_stream(config(data / "a"))) as stream,
        closing(open_stream(config(data / "a"))) as other,
    ):
        next(stream), next(other)
        stream.skip([[0, 12]])
        assert stream.state() == other.state()
        assert numbers(next(stream)) == numbers(next(other))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_samples_that_were_skipped_once_do_not_come_again(data: Path, size: int, shuffle: bool) -> None:
    plan = config(data / "a", micro_batch_size=1, shuffle=shuffle)
    with closing(open_stream(plan)) as stream:
        first_epoch = [number for _ in range(9) for number in numbers(next(stream))][:SAMPLES]
        stream.seek({**stream.state(), "position": 0})
        stream.skip([[14, 20], [25, 26]])
        state = stream.state()
    bad = {*first_epoch[14:20], *first_epoch[25:26]}
    steps = 5 * (SAMPLES - len(bad)) // 12
    seen = [number for step in global_steps(plan, steps, size=size, state=state) for number in step]
    assert not bad & set(seen)
    times = {number: seen.count(number) for number in set(first_epoch) - bad}
    assert set(times.values()) <= {4, 5}, "all others come once an epoch"


def test_a_stream_goes_on_in_any_epoch_as_one_that_was_not_interrupted(data: Path) -> None:
    plan = config(data / "a", data / "b", weights=(3.0, 1.0))
    with closing(open_stream(plan)) as stream:
        stream.skip([[14, 20], [40, 43]])
        for step in range(60):
            state = json.loads(json.dumps(stream.state()))
            drawn = numbers(next(stream))
            assert all(stream.unskipped([(draw, draw + 1)]) for draw in stream.own_draws())
            if step % 4:
                continue  # a resumed stream takes a while to find its place
            with closing(open_stream(plan)) as other:
                other.seek(state)
                other.skip([[14, 20], [40, 43]])  # as a run does that has them in its ledger
                assert other.state() == state
                assert numbers(next(other)) == drawn


def test_what_a_source_cannot_spare_is_left_out_where_it_stands_alone(data: Path) -> None:
    """Half of the samples have to stay: the first range takes fewer, both together take more."""
    plan = config(data / "a", micro_batch_size=1)
    half = SAMPLES // 2
    with closing(open_stream(plan)) as stream:
        stream.skip([[0, half - 2], [half, half + 5]])
        state = stream.state()
    assert state["skip"] == [[0, half - 2], [half, half + 5]]
    assert state["skip_for_good"] == [[0, half - 2]]


def test_a_state_of_before_samples_were_left_out_for_good_goes_on_as_it_was(data: Path) -> None:
    plan = config(data / "a", micro_batch_size=1)
    with closing(open_stream(plan)) as stream:
        old = {key: value for key, value in stream.state().items() if key != "skip_for_good"}
        old = {**old, "skip": [[14, 20]], "position": SAMPLES}
        plain = [number for _ in range(10) for number in numbers(next(stream))]
        stream.seek(old)
        stream.skip([[14, 20]])
        assert numbers(next(stream)) == plain[SAMPLES + 6 : SAMPLES + 18]


def test_draws_span_the_skipped_ones_within(data: Path) -> None:
    with closing(open_stream(config(data / "a"))) as stream:
        stream.skip([[5, 8]])
        next(stream)
        assert stream.sample_range() == (0, 15)
        next(stream)
        assert stream.sample_range() == (15, 27)


def test_batches_are_blocks_shifted_by_one(data: Path) -> None:
    with closing(open_stream(config(data / "a"))) as stream:
        step = next(stream)
        assert stream.manifest.tokenizer.vocabulary_size == VOCABULARY
        assert stream.samples_per_epoch == SAMPLES
    assert len(step) == 6
    for batch in step:
        assert batch.tokens_BS.shape == (2, LENGTH)
        assert batch.tokens_BS.dtype == torch.int64
        assert torch.equal(batch.tokens_BS, batch.targets_BS)  # every id of a block is the same here
        assert batch.target_weight == 2 * LENGTH


def test_unshuffled_it_follows_the_shards(data: Path) -> None:
    with closing(open_stream(config(data / "a", shuffle=False))) as stream:
        assert numbers(next(stream)) == list(range(1, 13))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Data that a test may damage."""
    return write_split(tmp_path / "own", SAMPLES)


def damage(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("size", [1, 2])
def test_a_damaged_sample_is_masked_and_named_and_all_others_stay(own: Path, size: int) -> None:
    plan = config(own, shuffle=False)
    damage(own / "train" / "text-000001.tar", byte=2 * 1024 + 512 + 130)  # a token of sample 2 of shard 1
    seen: list[int] = []
    masked = []
    for rank in range(size):
        with closing(open_stream(plan, rank=rank, size=size)) as stream:
            for batch in next(stream):
                seen += numbers([batch])
                masked += batch.damaged
                expected = [float(bool(row)) for row in numbers([batch])]
                assert batch.weights_BS.mean(dim=1).tolist() == expected
    assert sorted(seen) == [0, *range(1, 10), 11, 12]
    assert masked == [f"{own}/train/text-000001.tar: sample 2 at byte 2048: checksum mismatch"]


def test_a_missing_shard_is_named_at_once(own: Path) -> None:
    (own / "train" / "text-000002.tar").unlink()
    with pytest.raises(DataError, match=r"text-000002\.tar: is missing"):
        open_stream(config(own))


def test_a_shard_that_vanishes_later_surfaces_from_the_background(own: Path) -> None:
    stream = open_stream(config(own, shuffle=False))
    (own / "train" / "text-000002.tar").unlink()
    with closing(stream):
        assert numbers(next(stream)) == list(range(1, 13))
        for _ in range(2):  # asked again it says the same, and has not moved
            with pytest.raises(DataError, match=r"text-000002\.tar: is missing"):
                next(stream)
        assert stream.state()["position"] == 12


def test_a_shard_of_another_size_is_named(own: Path) -> None:
    path = own / "train" / "text-000000.tar"
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(DataError, match=r"text-000000\.tar: changed since it was indexed"):
        open_stream(config(own))


def test_a_changed_index_is_named(own: Path) -> None:
    damage(own / "train" / "text-000000.index.npy", byte=140)
    with (
        closing(open_stream(config(own, shuffle=False))) as stream,
        pytest.raises(DataError, match=r"text-000000\.index\.npy: changed"),
    ):
        next(stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "run.seed = 3: the run was begun with seed 4, .* set run.seed = 4 to go on"),
        ({"format": 9}, "format is 9"),
        ({"fingerprint": "f00"}, "fingerprint was f00"),
    ],
)
def test_a_state_of_another_run_is_refused(data: Path, change: dict[str, object], message: str) -> None:
    with closing(open_stream(config(data / "a"))) as stream, pytest.raises(DataError, match=message):
        stream.seek({**stream.state(), **change})


def test_a_state_of_other_data_names_what_differs(data: Path, tmp_path: Path) -> None:
    longer = write_split(tmp_path / "longer", 10, length=8)
    others = {
        r"sources\.0\.fingerprint": config(data / "b"),
        "sources: it was 1, now it is 2": config(data / "a", data / "b"),
        r"sources\.0\.weight: it was 1.0, now it is 2.0": config(data / "a", weights=(2,)),
        "shuffle: it was True, now it is False": config(data / "a", shuffle=False),
        "sequence_length: it was 4, now it is 8": config(longer, sequence_length=8),
    }
    with closing(open_stream(config(data / "a"))) as stream:
        state = stream.state()
    for message, plan in others.items():
        with closing(open_stream(plan)) as stream, pytest.raises(DataError, match=message):
            stream.seek(state)


def test_the_wrong_sequence_length_says_which_works(data: Path) -> None:
    with pytest.raises(
        DataError, match=r"sequences of 4 tokens, but data\.sequence_length is 8; set it to 4"
    ):
        open_stream(config(data / "a", sequence_length=8))


def test_sources_with_different_tokenizers_are_refused(data: Path, tmp_path: Path) -> None:
    other = write_split(tmp_path / "other", 10, tokenizer=b"another")
    with pytest.raises(DataError, match="made with tokenizer"):
        open_stream(config(data / "a", other))


def test_a_tokenizer_swapped_beside_its_shards_is_refused(own: Path) -> None:
    (own / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(DataError, match=r"tokenizer\.model: not the tokenizer that .* was made with"):
        open_stream(config(own))


def test_an_edited_manifest_is_refused(own: Path) -> None:
    path = own / "train" / "manifest.json"
    path.write_text(path.read_text().replace(f'"vocabulary_size":{VOCABULARY}', '"vocabulary_size":9'))
    with pytest.raises(DataError, match=r"fingerprint .* does not fit its content"):
        open_stream(config(own))


@pytest.mark.parametrize("content", ["", "[]", '{"format": 7}', '{"kind": "speech"}'])
def test_something_else_named_manifest_is_refused(own: Path, content: str) -> None:
    (own / "train" / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: "):
        open_stream(config(own))


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json and no train/manifest\.json"):
        open_stream(config(tmp_path))


def test_the_train_folder_itself_is_a_path_too(data: Path) -> None:
    assert global_steps(config(data / "a" / "train"), 2) == global_steps(config(data / "a"), 2)


def test_a_batch_that_cannot_be_cut_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"global_batch_size 12 is no multiple of micro_batch_size 2 x 5"):
        open_stream(config(data / "a"), size=5)


def test_closing_leaves_no_thread_and_no_file(data: Path) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    stream = open_stream(config(data / "a", prefetch_steps=3))
    next(stream)
    assert any(thread.name.startswith("data") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("data") for thread in threading.enumerate())
    del stream
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_the_time_waited_is_given_once(data: Path) -> None:
    with closing(open_stream(config(data / "a", prefetch_steps=0))) as stream:
        next(stream)
        assert stream.take_wait_seconds() > 0
        assert stream.take_wait_seconds() == 0


@pytest.mark.parametrize(("size", "micro"), [(1, 12), (2, 3), (3, 2)])
@pytest.mark.parametrize("samples", [None, 5, 12, 13, 99])
def test_validation_is_the_first_samples_padded_alike(
    data: Path, size: int, micro: int, samples: int | None
) -> None:
    plan = config(data / "a", micro_batch_size=micro)
    ranks = [
        ValidationSet(TextSource(), plan, samples=samples, data_rank=rank, data_size=size)
        for rank in range(size)
    ]
    expected = min(samples or 17, 17)
    assert {len(rank) for rank in ranks} == {-(-expected // 12)}
    for _ in range(2):  # it can be read again
        seen: list[int] = []
        for rank in ranks:
            steps = list(rank)
            assert len(steps) == len(rank)
            assert {len(step) for step in steps} == {12 // size // micro}
            for step in steps:
                for batch in step:
                    assert batch.target_weight == LENGTH * sum(number > 0 for number in numbers([batch]))
                    assert not batch.damaged
                    seen += numbers([batch])
        assert sorted(number for number in seen if number) == list(range(5001, 5001 + expected))
    for rank in ranks:
        rank.close()


def test_a_validation_split_is_not_trained_on(data: Path) -> None:
    """It would be what the run is validated with."""
    with pytest.raises(DataError, match=r"a/validation/manifest\.json: this is a validation split"):
        open_stream(config(data / "a" / "validation"))


def test_validation_of_its_own_sources_in_their_order(data: Path, tmp_path: Path) -> None:
    second = write_split(tmp_path / "second", 4, first=7001, split="validation")
    plan = config(data / "a", validation=[{"path": f"{data}/a"}, {"path": f"{second}"}], global_batch_size=24)
    with closing(ValidationSet(TextSource(), plan, samples=None, data_rank=0, data_size=1)) as validation:
        (step,) = validation
    assert numbers(step) == [*range(5001, 5018), *range(7001, 7005), 0, 0, 0]


def test_validation_that_is_not_there_says_what_to_do(data: Path) -> None:
    with pytest.raises(DataError, match=r"has no validation split .* --validation-fraction"):
        ValidationSet(TextSource(), config(data / "b"), samples=None, data_rank=0, data_size=1)


def test_validation_with_another_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    other = write_split(tmp_path / "other", 10, split="validation", tokenizer=b"another")
    plan = config(data / "a", validation=[{"path": str(other)}])
    with pytest.raises(DataError, match="made with tokenizer"):
        ValidationSet(TextSource(), plan, samples=None, data_rank=0, data_size=1)
