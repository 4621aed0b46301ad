"""This module has the outline of an encoder of speech.

T  outputs, V  units, D  hidden size
"""

from pretrain.models.config import TransformerConfig
from pretrain.models.outline import ActivationSize, LayerSize, Outline, ParameterSize
from pretrain.models.sizes import (
    ATTENTION,
    FEED_FORWARD,
    HEAD,
    NORMS,
    POSITIONS,
    block_name,
    block_size,
    final_norm_size,
    matrix_flops,
    position_size,
)

SUBSAMPLING = "subsampling"
PARTS = dict.fromkeys((SUBSAMPLING, POSITIONS, ATTENTION, FEED_FORWARD, NORMS, HEAD), "0")
"""Parts of the parameters, each with what to say where it has none."""


def speech_outline(
    config: TransformerConfig, vocabulary_size: int, mel_bins: int, kernel: int, outputs: int
) -> Outline:
    """It lists subsampling, positions, blocks, norm and head, for the longest utterance: `outputs` outputs."""
    return Outline(
        (
            subsampling_size(config, mel_bins, kernel, outputs),
            position_size(config, outputs),
            *(block_size(config, block_name(index), outputs) for index in range(config.num_layers)),
            final_norm_size(config),
            unit_head_size(config, vocabulary_size, outputs),
        ),
        PARTS | {POSITIONS: config.positions},
        stream=outputs * config.hidden_size,
    )


def subsampling_size(config: TransformerConfig, mel_bins: int, kernel: int, outputs: int) -> LayerSize:
    """The convolution has two features for each of the stream: values and gates. Both are kept, and the product."""
    rows = 2 * config.hidden_size
    weight = ParameterSize("convolution.weight", (rows, mel_bins, kernel), SUBSAMPLING)
    bias = ParameterSize("convolution.bias", (rows,), SUBSAMPLING)
    return LayerSize(
        SUBSAMPLING,
        (weight, bias) if config.bias else (weight,),
        activations=ActivationSize(whole=outputs * (rows + config.hidden_size)),
        flops=matrix_flops(weight.size, outputs),
        repeated_flops=matrix_flops(weight.size, outputs),
    )


def unit_head_size(config: TransformerConfig, vocabulary_size: int, outputs: int) -> LayerSize:
    """Every tensor-parallel rank has the whole head; the loss keeps logarithms and their gradient in fp32."""
    weight = ParameterSize("output.weight", (vocabulary_size, config.hidden_size), HEAD)
    bias = ParameterSize("output.bias", (vocabulary_size,), HEAD)
    logits = outputs * vocabulary_size
    return LayerSize(
        HEAD,
        (weight, bias) if config.bias else (weight,),
        activations=ActivationSize(whole=logits, wide=2 * logits),
        flops=matrix_flops(weight.size, outputs),
        repeated_flops=matrix_flops(weight.size, outputs),
    )
