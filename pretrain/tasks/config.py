"""This is the half of a task that needs no torch: its [model] section, from which its outline follows."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from data_pipeline.config import DataConfig
from parallel.config import ParallelConfig
from pretrain.errors import Problem
from pretrain.models.outline import Outline
from pretrain.section import Section


class TaskConfig(Section):
    """This is the [model] section of a task; each task derives its own, with a `kind` that names it.

    What is asked for here is all that anything outside of the task's room knows of its configuration.
    """

    kind: str
    """Architecture."""

    data_section: ClassVar[type[DataConfig]]
    """The [data] section that goes with it."""
    loss_unit: ClassVar[str]
    """What its loss is counted in, such as `nats per token`."""
    targets: ClassVar[str]
    """What its targets are, such as `tokens`."""
    changeable: ClassVar[Mapping[str, Any]] = {}
    """Keys that a resumed run may change, because they are not in the weights, as pydantic's `exclude` takes them."""

    @abstractmethod
    def outline(self, data: Any) -> Outline:
        """It returns the layers of the model by name and size; `data` is the task's own [data] section."""

    @abstractmethod
    def problems(self, data: Any, parallel: ParallelConfig) -> Iterator[Problem]:
        """It yields everything about the model that cannot work with these layers on these ranks."""

    def data_problems(self, data: DataConfig, manifest: Mapping[str, Any]) -> Iterator[Problem]:
        """It yields what prepared data has otherwise than the configuration, by the facts of its manifest.

        Here those are keys of the task's own [data] section that stand in the manifest, too; a subclass may have more.
        """
        common = set(DataConfig.model_fields)
        for name, value in data.model_dump(mode="json", exclude=common).items():
            if name in manifest and manifest[name] != value:
                found, key = json.dumps(manifest[name]), f"data.{name}"
                yield Problem(
                    key,
                    f"the data has {found}",
                    f"set {key} = {found}, or prepare it again",
                    json.dumps(value),
                )

    def shape(self, data: Any) -> dict[str, Any]:
        """It returns what a checkpoint must agree with, JSON-able: all keys but those that a resumed run may change."""
        return self.model_dump(mode="json", exclude=dict(self.changeable))
