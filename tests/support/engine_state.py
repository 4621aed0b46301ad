"""What training has made of an engine is compared by the bit."""

from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3


def state(engine: Any) -> Any:
    """It returns copies of all weights and optimizer states of this rank."""
    wrapper = engine._engine.optimizer
    if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
        # The module's own tensors are gathered and released at will: its weights are the fp32 shards.
        weights = list(wrapper.fp32_partitioned_groups_flat)
    else:
        weights = [p for group in engine.optimizer.param_groups for p in group["params"]]
        weights += list(engine.module.parameters())
    moments = [
        {key: torch.as_tensor(value).clone() for key, value in values.items()}
        for values in engine.optimizer.state.values()
    ]
    return {"weights": [weight.detach().clone() for weight in weights], "adam": moments}
