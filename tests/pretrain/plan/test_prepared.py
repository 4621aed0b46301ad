"""Data that is here is compared with the configuration before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import run_config
from support.training import Layout

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.shards.storage import open_folder
from data_pipeline.text.manifest import TextManifest
from pretrain.config.run import RunConfig
from pretrain.plan.prepared import data_problems, missing_data


def problems(config: RunConfig) -> dict[str, str]:
    return {problem.key: str(problem) for problem in data_problems(config)}


@pytest.mark.parametrize("url", ["", "file://"])
def test_data_that_fits_is_none(tmp_path: Path, corpus: Path, url: str) -> None:
    config = run_config(Layout(), tmp_path, corpus, data={"sources": [{"path": f"{url}{corpus}"}]})
    assert problems(config) == {}
    assert list(missing_data(config)) == []


@pytest.mark.parametrize(
    ("section", "values", "key", "remedy"),
    [
        ("data", {"sequence_length": 64}, "data.sequence_length", "set data.sequence_length = 32"),
        ("model", {"vocabulary_size": 304}, "model.vocabulary_size", "set model.vocabulary_size = 300"),
    ],
)
def test_data_of_another_shape_is_told(
    tmp_path: Path, corpus: Path, section: str, values: dict[str, Any], key: str, remedy: str
) -> None:
    told = problems(run_config(Layout(), tmp_path, corpus, **{section: values}))
    assert list(told) == [key]
    assert remedy in told[key]
    assert str(corpus) in told[key]


def test_validation_data_is_looked_at_too(tmp_path: Path, corpus: Path) -> None:
    """Data elsewhere, and data that is not there yet, are not."""
    sources = [{"path": "s3://bucket/text"}, {"path": str(tmp_path / "gone")}]
    data = {"sources": sources, "validation": [{"path": str(corpus)}], "sequence_length": 16}
    config = run_config(Layout(), tmp_path, corpus, data=data)
    assert list(problems(config)) == ["data.sequence_length"]
    (warning,) = missing_data(config)
    assert "data.sources[1].path" in warning


@pytest.mark.parametrize(
    "content",
    [
        None,
        "[1]",
        "{",
        "[" * 100_000,
        '{"tokenizer": 3}',
        '{"kind": "text"}',
        '{"split": "train", "tokenizer": {"vocabulary_size": []}}',
    ],
)
def test_data_that_is_no_data_is_told_by_its_key(tmp_path: Path, corpus: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    config = run_config(Layout(), tmp_path, corpus, data={"sources": [{"path": str(tmp_path)}]})
    (key,) = problems(config)
    assert key == ("model.vocabulary_size" if content and "vocabulary" in content else "data.sources[0].path")


def test_data_of_another_kind_is_told_as_such(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"split": "train", "kind": "translation"}')
    (told,) = problems(
        run_config(Layout(), tmp_path, corpus, data={"sources": [{"path": str(tmp_path)}]})
    ).values()
    assert (
        "is data of kind 'translation', but what is read here is of kind 'text'; model.kind says what" in told
    )


def test_data_of_another_tokenizer_is_told(tmp_path: Path, corpus: Path) -> None:
    manifest = json.loads((corpus / "train/manifest.json").read_text())
    tokenizer = {**manifest["tokenizer"], "sha256": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "tokenizer": tokenizer}))
    sources = [{"path": str(corpus)}, {"path": str(corpus)}, {"path": str(tmp_path)}]
    told = problems(run_config(Layout(), tmp_path, corpus, data={"sources": sources}))
    assert list(told) == ["data.sources[2].path"]
    assert "was made with another tokenizer than" in told["data.sources[2].path"]


def test_data_of_another_version_is_told_as_such(tmp_path: Path, corpus: Path) -> None:
    manifest = json.loads((corpus / "train/manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    config = run_config(Layout(), tmp_path, corpus, data={"sources": [{"path": str(tmp_path)}]})
    told = "format 99, and this version of Surefoot has format 1; read the data with the version that made it"
    assert told in problems(config)["data.sources[0].path"]
    with pytest.raises(DataError, match=told):
        read_manifest(open_folder(str(tmp_path), None), TextManifest)


def test_manifest_is_that_of_prepare(corpus: Path) -> None:
    assert json.loads((corpus / "train/manifest.json").read_text())["sequence_length"] == 32
