"""Pairs as a kind of data: what is refused, how people read them, and how batches are spoiled."""

import io
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from support.pairs import VOCABULARY, lengths_of, pairs_config, write_pairs

from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.storage import LocalFolder, open_folder
from data_pipeline.source import Baseline
from data_pipeline.text.tokenizer import train_tokenizer
from data_pipeline.translation.batch import PairBatch
from data_pipeline.translation.collate import PairCollator
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.sentences import SentenceCodec
from data_pipeline.translation.source import SOURCE_TOKENIZER, TARGET_TOKENIZER, TranslationSource

SOURCE = TranslationSource()


def dataset(folder: Path) -> Dataset[TranslationManifest]:
    return Dataset(LocalFolder(folder / "train"), TranslationManifest)


def npy(*ids: int, dtype: str = "<u2") -> memoryview:
    file = io.BytesIO()
    np.save(file, np.array(ids, dtype))
    return memoryview(file.getvalue())


def batch() -> PairBatch:
    return PairBatch(
        source_BS=torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]]),
        inputs_BT=torch.tensor([[1, 9, 0, 0, 0], [1, 11, 12, 13, 14]]),
        targets_BT=torch.tensor([[9, 1, 0, 0, 0], [11, 12, 13, 14, 1]]),
        weights_BT=torch.tensor([[1.0, 1, 0, 0, 0], [1, 1, 1, 1, 1]]),
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"max_source_length": 10},
            "has a sentence of 33 tokens, but data.max_source_length is 10; set it to 33",
        ),
        ({"max_target_length": 12}, "or prepare the data again with --max-length 12"),
    ],
)
def test_sentences_longer_than_the_model_reads_are_refused(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    plan = pairs_config(write_pairs(tmp_path / "a", 60), **settings)
    with pytest.raises(DataError, match=told):
        BatchStream(SOURCE, plan, seed=0, data_rank=0, data_size=1)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", 30)
    write_pairs(tmp_path / "b", 30, tokenizer=b"another")
    with pytest.raises(
        DataError, match=r"made with the source tokenizer .* prepare one with the --tokenizer of"
    ):
        BatchStream(SOURCE, pairs_config(tmp_path / "a", tmp_path / "b"), seed=0, data_rank=0, data_size=1)
    write_pairs(tmp_path / "b", 5, split="validation", tokenizer=b"another")
    plan = pairs_config(tmp_path / "a", validation=[{"path": str(tmp_path / "b")}])
    with pytest.raises(DataError, match="made with the source tokenizer"):
        ValidationSet(SOURCE, plan, samples=None, data_rank=0, data_size=1)
    (tmp_path / "a" / "tokenizer.model").write_bytes(b"a third")
    with pytest.raises(DataError, match=r"not the tokenizer that .* was made with"):
        BatchStream(SOURCE, pairs_config(tmp_path / "a"), seed=0, data_rank=0, data_size=1)


def test_lengths_that_the_manifest_does_not_know_are_refused(tmp_path: Path) -> None:
    """They would be longer than what the model was told to expect."""
    with closing(dataset(write_pairs(tmp_path / "a", 60))) as data:
        data.manifest = data.manifest.model_copy(update={"longest_target": 5})
        with pytest.raises(
            DataError, match=r"has sentences of 2 to \[33, 39\] tokens, but the manifest says of 1"
        ):
            SOURCE.buckets(data, pairs_config("a"))


def test_lengths_are_those_of_the_indexes_alone(tmp_path: Path) -> None:
    """No shard is fetched for them, and an index that is not the one that was written ends the run."""
    folder = write_pairs(tmp_path / "a", 120)
    with fsspec.open("memory://lengths/train/manifest.json", "wb") as file:
        file.write((folder / "train/manifest.json").read_bytes())
    for index in (folder / "train").glob("*.index.npy"):
        with fsspec.open(f"memory://lengths/train/{index.name}", "wb") as file:
            file.write(index.read_bytes())
    remote = open_folder("memory://lengths/train", tmp_path / "cache")
    with closing(Dataset(remote, TranslationManifest)) as data:
        lengths_NK = SOURCE.buckets(data, pairs_config("a")).lengths_NK
    assert lengths_NK.tolist() == [list(lengths_of(number)) for number in range(120)]
    (index, *_) = (folder / "train").glob("*.index.npy")
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with (
        closing(dataset(folder)) as data,
        pytest.raises(DataError, match=r"changed since .*manifest\.json was"),
    ):
        SOURCE.buckets(data, pairs_config("a"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ((npy(5, 1), npy(6, 7, dtype="<u4")), "target.npy is no sentence in ids of type uint16"),
        ((npy(5, 1)[:-1], npy(6, 1)), "source.npy is no sentence"),
        ((memoryview(b""), npy(6, 1)), "source.npy is no sentence"),
        ((npy(), npy(6, 1)), "source.npy is no sentence"),
        ((npy(5, 1), npy(6, 0, 1)), "target.npy has the id 0, which stands for padding"),
        ((npy(VOCABULARY, 1), npy(6, 1)), f"has the id {VOCABULARY}, but the tokenizer has {VOCABULARY} ids"),
    ],
)
def test_a_sound_sample_that_is_no_pair_is_named(
    tmp_path: Path, fields: tuple[memoryview, ...], told: str
) -> None:
    with closing(dataset(write_pairs(tmp_path / "a", 5))) as data:
        collate = PairCollator(data.manifest)
    with pytest.raises(DataError, match=told) as error:
        collate([Sample("data", fields, shard="x-000001.tar", number=3)])
    assert "data/x-000001.tar: sample 3" in str(error.value)


def test_a_damaged_pair_is_padding_of_no_weight(tmp_path: Path) -> None:
    with closing(dataset(write_pairs(tmp_path / "a", 5))) as data:
        collate = PairCollator(data.manifest)
    mixed = collate([Sample("data", (npy(5, 6, 1), npy(7, 1))), Sample("data", damage="bit rot")])
    assert mixed.source_BS.tolist() == [[5, 6, 1], [0, 0, 0]]
    assert mixed.inputs_BT.tolist() == [[1, 7], [0, 0]]
    assert mixed.weights_BT.tolist() == [[1, 1], [0, 0]]
    assert mixed.damaged == ("bit rot",)
    alone = collate([Sample("padding")])
    assert alone.source_BS.shape == alone.targets_BT.shape == (1, 1)
    assert alone.tokens == alone.target_weight == 0


def test_sentences_survive_a_shard() -> None:
    codec = SentenceCodec("uint32")
    pair = np.array([70_000, 3, 1]), np.array([1])
    fields = [memoryview(content) for content in codec.encode(*pair).values()]
    assert [ids.tolist() for ids in codec.decode(fields)] == [[70_000, 3, 1], [1]]
    assert codec.lengths(np.array([[len(field) for field in fields]], np.uint32)).tolist() == [[3, 1]]
    assert np.load(io.BytesIO(fields[0])).tolist() == [70_000, 3, 1], "as any reader has it"


def test_people_read_both_sides_and_checkpoints_have_both_tokenizers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a dog runs", "ein Hund rennt"] * 3, 280)
    folder = write_pairs(tmp_path / "a", 5, tokenizer=tokenizer.model)
    with closing(dataset(folder)) as data:
        assert SOURCE.companions(data) == {}
        with pytest.raises(DataError, match="the tokenizer does not lie beside its shards any more"):
            SOURCE.describer(data)
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
        sides = [npy(*tokenizer.encode(text), 1) for text in ("a dog", "ein Hund")]
        assert SOURCE.describer(data)(Sample("data", tuple(sides))) == "a dog => ein Hund"
        companions = SOURCE.companions(data)
    assert companions == dict.fromkeys((SOURCE_TOKENIZER, TARGET_TOKENIZER), tokenizer.model)
    measure = SOURCE.measure(companions.__getitem__)
    end = tokenizer.end_of_text
    targets_BT = torch.tensor(
        [[*tokenizer.encode("ein Hund"), end], [*tokenizer.encode("ein Hand"), end]][:1]
    )
    measure.add(replace(batch(), targets_BT=targets_BT, weights_BT=torch.ones(targets_BT.shape)))
    assert measure.totals() == {"byte": 8, "word": 2}
    assert measure.baseline().loss > 0


def test_the_baseline_is_that_of_the_manifest(tmp_path: Path) -> None:
    with closing(dataset(write_pairs(tmp_path / "a", 5))) as data:
        manifest = data.manifest
    assert SOURCE.baseline(manifest) is None
    known = manifest.model_copy(update={"unigram_cross_entropy": 6.5})
    assert SOURCE.baseline(known) == Baseline("a unigram model", 6.5)


def test_targets_out_of_order_are_the_same_targets() -> None:
    given = batch()
    spoiled = SOURCE.shuffle_targets(given, 1, torch.Generator().manual_seed(1))
    assert sorted(spoiled.targets_BT[1].tolist()) == sorted(given.targets_BT[1].tolist())
    assert spoiled.targets_BT[1].tolist() != given.targets_BT[1].tolist()
    assert torch.equal(SOURCE.shuffle_targets(given, 0, torch.Generator()).targets_BT[0, 2:], torch.zeros(3))
    assert torch.equal(given.targets_BT, batch().targets_BT), "what was given is left alone"
    assert all(map(torch.equal, spoiled.inputs, given.inputs))


def test_a_random_row_is_a_pair_of_the_same_lengths(tmp_path: Path) -> None:
    with closing(dataset(write_pairs(tmp_path / "a", 5))) as data:
        manifest = data.manifest
    given = batch()
    spoiled = SOURCE.randomise(given, manifest, 1, torch.Generator().manual_seed(1))
    for now, was in zip(
        (*spoiled.inputs, spoiled.targets_BT), (*given.inputs, given.targets_BT), strict=True
    ):
        assert torch.equal(now[0], was[0])
        assert torch.equal(now != 0, was != 0)
        assert not torch.equal(now[1], was[1])
    assert torch.equal(spoiled.inputs_BT[1, 1:], spoiled.targets_BT[1, :-1])
    assert spoiled.inputs_BT[1, 0] == 1
    assert torch.equal(given.source_BS, batch().source_BS), "what was given is left alone"


def test_a_type_that_does_not_hold_the_ids_is_refused(tmp_path: Path) -> None:
    with closing(dataset(write_pairs(tmp_path / "a", 5))) as data:
        facts = data.manifest.model_dump(mode="json", exclude={"fingerprint"})
    facts["target_tokenizer"]["vocabulary_size"] = 70_000
    with pytest.raises(ValueError, match="dtype uint16 does not hold 70000 ids"):
        TranslationManifest.model_validate(facts)


def test_keys_of_a_translation_need_no_torch() -> None:
    program = "import sys, data_pipeline.translation.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3]).returncode == 0
