"""Prepared data on this machine is compared with the configuration, by its manifest, before anything starts."""

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.parsing import parse_json, parsed_as
from data_pipeline.shards.manifest import MANIFEST, check_readable, split_folder
from data_pipeline.shards.storage import local_path
from pretrain.config.run import RunConfig
from pretrain.errors import Problem


def missing_data(config: RunConfig) -> Iterator[str]:
    """It warns of data that does not lie on this machine; that of a run may lie on others."""
    for key, source, _ in local_data(config):
        if not source.exists():
            yield f"{key}: {source} is not on this machine; `surefoot prepare` makes data"


def data_problems(config: RunConfig) -> Iterator[Problem]:
    """It yields what local data has otherwise than the configuration, and what is wrong with its manifest."""
    for key, source, split in local_data(config):
        if not source.exists():
            continue
        try:
            folder = split_folder(str(source), split, None)
            with parsed_as(DataError, f"{folder.name}/{MANIFEST}"):
                manifest = parse_json(folder.read(MANIFEST))
                check_readable(manifest, config.data.kind)
                found = list(config.model.data_problems(config.data, manifest))
        except DataError as error:
            yield Problem(key, str(error))
        else:
            for problem in found:
                yield Problem(problem.key, f"{problem.rule} ({folder.name})", problem.remedy, problem.value)


def local_data(config: RunConfig) -> Iterator[tuple[str, Path, str]]:
    """It yields key, path and split of what a run reads from this machine."""
    for name, split in (("sources", "train"), ("validation", "validation")):
        for number, source in enumerate(getattr(config.data, name)):
            if (path := local_path(source.path)) is not None:
                yield f"data.{name}[{number}].path", path, split
