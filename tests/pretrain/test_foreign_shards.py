"""Shards of other writers are read as they are; what cannot be in them ends the run on all ranks alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.distributed import run_distributed
from support.runs import run_config, run_to_end
from support.training import SEQUENCE, VOCABULARY, Layout, slow

from data_pipeline.errors import DataError
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.text.blocks import BlockCodec
from data_pipeline.text.manifest import TextManifest


def write_anew(split: Path, token: int) -> None:
    """It gives a split other samples, with an id in the first one that the tokenizer may not have."""
    facts = json.loads((split / "manifest.json").read_text())
    facts.pop("fingerprint")
    manifest = TextManifest.model_validate(facts)
    codec, random = BlockCodec(SEQUENCE, "uint16"), np.random.default_rng(0)
    blocks = random.integers(VOCABULARY, size=(manifest.samples, SEQUENCE + 1), dtype=np.uint16)
    blocks[0, 5] = token
    for path in split.glob("text-*"):
        path.unlink()
    with ShardWriter(split, "text", 1_000_000) as writer:
        for number, block in enumerate(blocks):
            writer.write(f"sample-{number}", codec.encode(block))
        written = manifest.model_copy(update={"shards": writer.finish()})
    (split / "manifest.json").write_text(written.model_dump_json())


def attempt(layout: Layout, folder: Path, corpus: Path) -> str:
    """It trains on this rank, and returns how that ended."""
    try:
        return run_to_end(run_config(layout, folder, corpus))
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    "layout",
    [Layout(tensor=2), Layout(pipeline=2), slow(Layout()), slow(Layout(data=2))],
    ids=str,
)
def test_an_id_beyond_the_vocabulary_ends_the_run_on_all_ranks(
    tmp_path: Path, corpus: Path, layout: Layout, split: str
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    write_anew(data / split, VOCABULARY)
    ends = run_distributed(attempt, layout.world_size, layout, tmp_path, data)
    place = f"{data / split}/text-000000.tar: sample 0"
    told = f"{place} has the id {VOCABULARY}, but the tokenizer has {VOCABULARY} ids, from 0; "
    assert [end[: len(told)] for end in ends] == [told] * layout.world_size


def test_shards_of_another_writer_are_read(tmp_path: Path, corpus: Path) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    write_anew(data / "train", VOCABULARY - 1)
    assert run_distributed(attempt, 2, Layout(tensor=2), tmp_path, data) == ["finished"] * 2
