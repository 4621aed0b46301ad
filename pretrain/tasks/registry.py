"""These are the tasks as the run knows them; `kinds` has their other half, which needs no torch."""

from collections.abc import Mapping
from typing import Any

from pretrain.section import kind_of
from pretrain.tasks.forecasting.config import FORECASTERS
from pretrain.tasks.forecasting.task import Forecasting
from pretrain.tasks.gpt.task import GPT
from pretrain.tasks.speech.task import Speech
from pretrain.tasks.task import Task
from pretrain.tasks.translation.task import Translation

TASKS: Mapping[str, Task[Any]] = {
    "gpt": GPT(),
    "translation": Translation(),
    "speech": Speech(),
    **dict.fromkeys(map(kind_of, FORECASTERS), Forecasting()),
}
"""By `model.kind`."""
