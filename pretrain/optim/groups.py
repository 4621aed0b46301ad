"""Parameter groups say what decays and what does not."""

from collections.abc import Iterable
from typing import Any

from torch import nn

Groups = list[dict[str, Any]]
"""As torch's optimizers take them: parameters, and settings that differ from the other groups'."""


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> Groups:
    """It returns two groups: matrices decay; biases and normalization gains, which have one dimension, do not."""
    trained = [p for p in parameters if p.requires_grad]
    groups: Groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
