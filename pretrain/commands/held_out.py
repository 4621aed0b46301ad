"""Commands run models over validation data: that of the model's run, or other data."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from data_pipeline.batches import Batch
from data_pipeline.config import SourceConfig
from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as
from data_pipeline.reading.mixture import has_validation
from data_pipeline.reading.stream import ValidationSet
from data_pipeline.shown import shown
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable
from pretrain.run_folder import CONFIG
from pretrain.tasks.registry import TASKS


@contextmanager
def held_out(
    checkpoint: Usable, other: str | None, samples: int | None, options: str
) -> Iterator[tuple[str, ValidationSet]]:
    """It opens the first `samples` samples of the validation split, none: all; and says what they are of.

    `other` is prepared data in place of the run's. `options` are those of the command that give data.

    Raises:
        ConfigurationError: `other` is no place that data could be in.
        DataError: there is no such data, or it is not for this model.
    """
    data = checkpoint.config.data
    if other:
        with parsed_as(ConfigurationError, "--data"):
            split = SourceConfig(path=other)
        data = data.model_copy(update={"sources": (split,), "validation": (split,)})
    elif not checkpoint.has(CONFIG):
        raise DataError(f"{shown(checkpoint.folder)} has no data of its own; give it {options}")
    if not has_validation(data):
        raise DataError(f"the run's data has no validation split; give {options}")
    source = TASKS[checkpoint.config.model.kind].source
    found = ValidationSet(source, data, samples=samples, data_rank=0, data_size=1)
    try:
        check_companions(checkpoint, found)
        yield ", ".join(shown(entry.path) for entry in data.validation or data.sources), found
    finally:
        found.close()


def sound_batches(checkpoint: Usable, data: ValidationSet) -> Iterator[Batch]:
    """It yields all batches, and names damaged samples, which count for nothing, on standard error.

    Raises DataError for more of them than a run like the model's would take.
    """
    damaged, budget = 0, checkpoint.config.data.damaged_sample_budget
    for batch in chain.from_iterable(data):
        for name in batch.damaged:
            print(f"damaged sample left out: {shown(name)}", file=sys.stderr)
        damaged += len(batch.damaged)
        if damaged > budget:
            raise DataError(
                f"{damaged} damaged samples, more than data.damaged_sample_budget = {budget} of the run allows; "
                "they are named above: prepare the data again"
            )
        yield batch


def check_companions(checkpoint: Usable, data: ValidationSet) -> None:
    """It raises DataError for data that was made with another tokenizer, say, than the model's."""
    for name, content in data.companions.items():
        if checkpoint.has(name) and checkpoint.companion(name) != content:
            raise DataError(f"the data was made with another {name} than {shown(checkpoint.folder)} has")
