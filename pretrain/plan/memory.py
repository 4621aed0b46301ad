"""Estimates of memory per rank, in bytes.

Model states follow Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, sections 3.1 and 5). Activations
follow Korthikanti et al. 2022 (arXiv 2205.05198, equation 2), item by item, without the S x S matrices,
which flash attention does not keep. Not counted: communication buffers, fragmentation, and the
accelerator's context, which together are about 1 to 2 GB.

b  samples in a micro-batch   s  tokens in a sequence   h  hidden size   t  tensor-parallel size
e  bytes of a number in the compute dtype               d  data-parallel size
"""

from dataclasses import dataclass

from pretrain.config.run import ModelConfig, RunConfig

FP32_BYTES = 4
DTYPE_BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of one number in each compute dtype."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def weight_bytes(config: RunConfig, parameters: int, data: int) -> int:
    """e bytes a parameter, divided by d under ZeRO-3."""
    share = data if config.parallel.zero_stage == 3 else 1
    return DTYPE_BYTES[config.precision.dtype] * parameters // share


def gradient_bytes(config: RunConfig, parameters: int, data: int) -> int:
    """4 bytes a parameter (e without ZeRO, which cannot accumulate in fp32), divided by d under ZeRO-2 and 3."""
    stage = config.parallel.zero_stage
    size = FP32_BYTES if stage else DTYPE_BYTES[config.precision.dtype]
    return size * parameters // (data if stage >= 2 else 1)


def optimizer_bytes(config: RunConfig, parameters: int, data: int) -> int:
    """Two moments and master weights in fp32, divided by d under ZeRO; plain fp32 needs no master weights."""
    stage = config.parallel.zero_stage
    copies = 2 if stage == 0 and config.precision.dtype == "fp32" else 3
    return copies * FP32_BYTES * parameters // (data if stage else 1)


def block_activation_bytes(config: RunConfig) -> int:
    """What one block keeps of one micro-batch for its backward pass.

    b s h e [4 + 3 r/h + (2 + 2 k + f) / t]: the inputs of both norms and of both sub-layers (4; without norms 2), and
    the latents of low-rank attention (3 of rank r), whole on every rank; divided by t: queries and attention output
    (2), keys and values (2 k for k key-value heads a query head), and the inner feed-forward layer, f = 2 F/h for
    GELU (its input and output), f = 4 F/h for SwiGLU (gate, value, silu, product). Dropout adds 2 masks of one byte.
    """
    model, tensor = config.model, config.parallel.tensor
    grouped = model.num_key_value_heads / model.attention.num_heads
    feed_forward = (2 if model.activation == "gelu" else 4) * model.ffn_size / model.hidden_size
    inputs = 2 if model.norm_placement == "none" else 4
    latents = 3 * model.attention_rank / model.hidden_size if model.attention.kind == "mlra" else 0
    numbers = inputs + latents + (2 + 2 * grouped + feed_forward) / tensor
    masks = 2 if model.dropout else 0
    return round(micro_batch_numbers(config) * (numbers * DTYPE_BYTES[config.precision.dtype] + masks))


def activation_bytes(config: RunConfig, blocks: int, micro_batches: int, has_head: bool) -> int:
    """Activations of a stage with `blocks` blocks that keeps `micro_batches` micro-batches in flight.

    With activation checkpointing a block keeps only its input, b s h e, and one block at a time is whole.
    The head adds logits in the compute dtype and twice in fp32 for the loss: b s V/t (e + 8), once.
    """
    block = block_activation_bytes(config)
    block_input = micro_batch_numbers(config) * DTYPE_BYTES[config.precision.dtype]
    if config.model.activation_checkpointing:
        kept = blocks * micro_batches * block_input + block
    else:
        kept = blocks * micro_batches * block
    return kept + (logit_bytes(config) if has_head else 0)


def logit_bytes(config: RunConfig) -> int:
    tokens = config.data.micro_batch_size * config.data.sequence_length
    vocabulary = config.model.padded_vocabulary_size // config.parallel.tensor
    return tokens * vocabulary * (DTYPE_BYTES[config.precision.dtype] + 2 * FP32_BYTES)


def micro_batch_numbers(config: RunConfig) -> int:
    """b s h: numbers in the residual stream of one micro-batch."""
    return config.data.micro_batch_size * config.data.sequence_length * config.model.hidden_size


def flops_per_token(model: ModelConfig, matrix_parameters: int, sequence_length: int) -> float:
    """Training FLOPs a token: 6 N + 12 L H Q S (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).

    N counts the matrices that multiply activations: the head, but not the embedding look-up. L layers, H
    heads of size Q, S tokens; as usual for model FLOP utilisation the attention term counts the whole
    S x S square, and recomputation is not counted, nor that replicated matrices are multiplied on every tensor rank.
    """
    attention = 12 * model.num_layers * model.attention.num_heads * model.head_size * sequence_length
    return float(6 * matrix_parameters + attention)
