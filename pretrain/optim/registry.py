"""These are the optimizers as the engine knows them; `config.OPTIMIZERS` has their other half, without torch."""

from collections.abc import Mapping
from typing import Any

from pretrain.optim.adagrad import Adagrad
from pretrain.optim.adamw import AdamW
from pretrain.optim.config import OptimizerConfig
from pretrain.optim.lamb import LAMB
from pretrain.optim.lars import LARS
from pretrain.optim.optimizer import Optimizer
from pretrain.optim.sgd import SGD

IMPLEMENTATIONS: Mapping[str, type[Optimizer[Any]]] = {
    "adamw": AdamW,
    "sgd": SGD,
    "lars": LARS,
    "lamb": LAMB,
    "adagrad": Adagrad,
}
"""By `optimizer.kind`."""


def make_optimizer(config: OptimizerConfig) -> Optimizer[Any]:
    """It makes what a configuration asks for, and raises ConfigurationError where that is not to be had here."""
    return IMPLEMENTATIONS[config.kind](config)
