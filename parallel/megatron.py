"""What we use of Megatron-core (0.16) is imported here, once.

Importing it warns half a dozen times that Transformer Engine and apex are missing, although nothing here needs
them; the start-up line of a run says which kernels are used. Of its fused functions, which `megatron/core/jit.py` would
have compiled, none is used.
"""

import warnings

from parallel.uncompiled import uncompiled

with warnings.catch_warnings(), uncompiled():
    warnings.simplefilter("ignore")
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
        set_tensor_model_parallel_attributes,
    )
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

__all__ = [
    "ColumnParallelLinear",
    "ModelParallelConfig",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "reduce_from_tensor_model_parallel_region",
    "set_tensor_model_parallel_attributes",
]
