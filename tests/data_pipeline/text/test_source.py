"""Text as a kind of data: its facts, what it knows of losses, and how its batches are spoiled."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from support.numbered_data import LENGTH, VOCABULARY, config, numbers, write_split

from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.storage import LocalFolder
from data_pipeline.source import Baseline
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.config import TextConfig
from data_pipeline.text.manifest import TextManifest
from data_pipeline.text.source import TextSource

STATE = {
    "format": 1,
    "position": 36,
    "skip": [[14, 20]],
    "seed": 3,
    "fingerprint": "6c6c0af85dd270d7f77a52851d55ad4be25756453d0ff924c48ecaa595e1d848",
    "data": {
        "kind": "text",
        "sequence_length": 4,
        "tokenizer": "5f97e3774c51edd1d63706c2ec3826c564a067794770cdab0f8c4797971cacf9",
        "sources": 2,
        "sources.0.fingerprint": "f30068a90253ec78517472bc6f6ab5137a798737640fb974955722967cace7f8",
        "sources.0.weight": 2.0,
        "sources.1.fingerprint": "e1422d2a8ac1dc9c9b29cde60d716f09aa47550abdc744bfd22764a04eed7d22",
        "sources.1.weight": 1.0,
        "shuffle": True,
    },
}
"""Of checkpoints that were written when text was the only kind of data, byte by byte; later ones say more."""

STEPS = [
    [10, 16, 22, 20, 14, 1004, 15, 11, 5, 29, 1007, 25],
    [1, 17, 1010, 1002, 1011, 1006, 6, 12, 27, 28, 3, 23],
    [26, 8, 1001, 1009, 7, 1008, 1005, 1005, 30, 2, 4, 13],
]


def test_positions_saved_before_there_were_other_kinds_mean_the_same(tmp_path: Path) -> None:
    write_split(tmp_path / "a", 30)
    write_split(tmp_path / "b", 11, first=1001)
    plan = config(tmp_path / "a", tmp_path / "b", weights=(2, 1))
    with closing(BatchStream(TextSource(), plan, seed=3, data_rank=0, data_size=1)) as stream:
        stream.skip([(14, 20)])
        assert [numbers(next(stream)) for _ in range(3)] == STEPS
        state = stream.state()
        assert json.dumps({name: state[name] for name in STATE}) == json.dumps(STATE)
        stream.seek({**STATE, "position": 12})
        assert [numbers(next(stream)) for _ in range(2)] == STEPS[1:]


def dataset(folder: Path) -> Dataset[TextManifest]:
    return Dataset(LocalFolder(folder / "train"), TextManifest)


def test_facts_are_those_that_a_mixture_has_in_common(tmp_path: Path) -> None:
    with closing(dataset(write_split(tmp_path / "a", 8))) as data:
        facts = TextSource().facts(data.manifest)
    assert facts == {"sequence_length": LENGTH, "tokenizer": STATE["data"]["tokenizer"]}


def test_a_baseline_is_there_where_the_manifest_has_one(tmp_path: Path) -> None:
    with closing(dataset(write_split(tmp_path / "a", 8))) as data:
        manifest = data.manifest
    assert TextSource().baseline(manifest) is None
    known = manifest.model_copy(update={"unigram_cross_entropy": 6.25})
    assert TextSource().baseline(known) == Baseline("a unigram model", 6.25)


def test_without_a_tokenizer_beside_the_shards_nothing_is_described(tmp_path: Path) -> None:
    with (
        closing(dataset(write_split(tmp_path / "a", 8))) as data,
        pytest.raises(DataError, match=r"tokenizer\.model: the tokenizer does not lie beside its shards"),
    ):
        TextSource().describer(data)


def batch() -> TokenBatch:
    blocks_BS1 = torch.arange(3 * 9).view(3, 9)
    return TokenBatch(blocks_BS1[:, :-1], blocks_BS1[:, 1:], torch.ones(3, 8), ("a sample",))


def test_shuffled_targets_are_one_permutation_by_the_generator() -> None:
    given = batch()
    spoiled = TextSource().shuffle_targets(given, 1, torch.Generator().manual_seed(70))
    permutation = torch.randperm(8, generator=torch.Generator().manual_seed(70))
    expected = batch().targets_BS.clone()
    expected[1] = expected[1][permutation]
    assert torch.equal(spoiled.targets_BS, expected)
    assert torch.equal(spoiled.tokens_BS, batch().tokens_BS)
    assert torch.equal(given.targets_BS, batch().targets_BS), "what was given is left alone"
    assert spoiled.damaged == ("a sample",)


def test_a_random_row_is_a_block_of_ids(tmp_path: Path) -> None:
    with closing(dataset(write_split(tmp_path / "a", 8))) as data:
        manifest = data.manifest
    given = batch()
    spoiled = TextSource().randomise(given, manifest, 2, torch.Generator().manual_seed(70))
    block = torch.randint(VOCABULARY, (9,), generator=torch.Generator().manual_seed(70))
    assert torch.equal(spoiled.tokens_BS[2], block[:-1])
    assert torch.equal(spoiled.targets_BS[2], block[1:])
    assert torch.equal(spoiled.tokens_BS[:2], batch().tokens_BS[:2])
    assert torch.equal(given.tokens_BS, batch().tokens_BS), "what was given is left alone"


def test_the_kind_need_not_be_written() -> None:
    plan = config("somewhere")
    assert plan.kind == "text"
    assert "kind" not in repr(plan)
    assert TextConfig.model_validate(plan.model_dump()) == plan
    assert plan.tokens_per_sample == LENGTH


def test_keys_of_a_configuration_need_no_torch() -> None:
    program = "import sys, data_pipeline.text.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3]).returncode == 0
