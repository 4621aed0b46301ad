"""These are the tasks as the configuration knows them; `registry` has their other half, which needs torch."""

from pretrain.tasks.config import TaskConfig
from pretrain.tasks.gpt.config import GPTConfig

KINDS: tuple[type[TaskConfig], ...] = (GPTConfig,)
"""The [model] section of every task, that of the default `model.kind` first."""
