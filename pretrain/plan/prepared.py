"""Prepared data on this machine is compared with the configuration, by its manifest, before anything starts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.parsing import parse_json, parsed_as
from data_pipeline.shards.manifest import MANIFEST, check_readable, split_folder
from data_pipeline.shards.storage import local_path
from pretrain.config.run import RunConfig
from pretrain.errors import Problem

SPELLING = {"tokenizer": "another tokenizer", "tokenizers": "other tokenizers", "units": "other units"}
"""Keys of manifests, of what turns text into numbers: all data of a run must have the same."""


def missing_data(config: RunConfig) -> Iterator[str]:
    """It warns of data that does not lie on this machine; that of a run may lie on others."""
    for key, source, _ in local_data(config):
        if not source.exists():
            yield f"{key}: {source} is not on this machine; `surefoot prepare` makes data"


def data_problems(config: RunConfig) -> Iterator[Problem]:
    """It yields what local data has otherwise than the configuration or other data, and what is wrong with its
    manifest."""
    first: tuple[str, dict[str, list[Any]]] | None = None
    for key, source, split in local_data(config):
        if not source.exists():
            continue
        try:
            folder = split_folder(str(source), split, None)
            with parsed_as(DataError, f"{folder.name}/{MANIFEST}"):
                manifest = parse_json(folder.read(MANIFEST))
                check_readable(manifest, config.data.kind)
                found = list(config.model.data_problems(config.data, manifest))
                made_with = spelled_by(manifest)
        except DataError as error:
            yield Problem(key, str(error))
        else:
            for problem in found:
                yield Problem(problem.key, f"{problem.rule} ({folder.name})", problem.remedy, problem.value)
            first = first or (folder.name, made_with)
            for table in (name for name in SPELLING if made_with.get(name) != first[1].get(name)):
                rule = f"{folder.name} was made with {SPELLING[table]} than {first[0]}"
                yield Problem(key, rule, f"prepare one with the {table} of the other")


def spelled_by(manifest: Mapping[str, Any]) -> dict[str, list[Any]]:
    """It returns the checksums of what has turned text into numbers, by its key in a manifest."""
    tables = {name: manifest[name] for name in SPELLING if name in manifest}
    return {
        name: [one.get("sha256") for one in (table if isinstance(table, list) else [table])]
        for name, table in tables.items()
    }


def local_data(config: RunConfig) -> Iterator[tuple[str, Path, str]]:
    """It yields key, path and split of what a run reads from this machine."""
    for name, split in (("sources", "train"), ("validation", "validation")):
        for number, source in enumerate(getattr(config.data, name)):
            if (path := local_path(source.path)) is not None:
                yield f"data.{name}[{number}].path", path, split
