"""These are the tasks as the configuration knows them; `registry` has their other half, which needs torch."""

from pretrain.tasks.config import TaskConfig
from pretrain.tasks.forecasting.config import FORECASTERS
from pretrain.tasks.gpt.config import GPTConfig
from pretrain.tasks.speech.config import SpeechModelConfig
from pretrain.tasks.translation.config import TranslatorConfig

KINDS: tuple[type[TaskConfig], ...] = (
    GPTConfig,
    TranslatorConfig,
    SpeechModelConfig,
    *FORECASTERS,
)
"""The [model] section of every task, that of the default `model.kind` first."""
