"""This module has the outlines of models that forecast.

D  channels, L  lookback, H  horizon, S  hidden size of a temporal Transformer
"""

from data_pipeline.series.config import SeriesConfig
from pretrain.models.collectives import attention_collectives
from pretrain.models.config import TransformerConfig
from pretrain.models.outline import (
    ActivationSize,
    AttentionSize,
    LayerSize,
    Outline,
    ParameterSize,
)
from pretrain.models.sizes import (
    ATTENTION,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    NORMS,
    POSITIONS,
    attention_flops,
    block_name,
    block_size,
    final_norm_size,
    matrix_flops,
    position_size,
    query_and_key_rows,
    self_attention_parameters,
    spectral_buffers,
)

INSTANCE_NORM, TIME_MIXING, CHANNEL_MIXING = "instance_norm", "time_mixing", "channel_mixing"


def samformer_outline(config: TransformerConfig, data: SeriesConfig, *, instance_norm: bool) -> Outline:
    """It lists instance norm, blocks over channels, norm and head."""
    blocks = (channel_block_size(config, block_name(i), data.channels) for i in range(config.num_layers))
    layers = (
        *instance_norm_sizes(data, instance_norm, bias=config.bias),
        *blocks,
        final_norm_size(config),
        horizon_head_size(data, bias=config.bias),
    )
    parts = (INSTANCE_NORM, ATTENTION, NORMS, HEAD)
    return outline_of(layers, parts, data.channels * config.hidden_size, instance_norm=instance_norm)


def temporal_outline(config: TransformerConfig, data: SeriesConfig, *, instance_norm: bool) -> Outline:
    """It lists instance norm, embedding, positions, blocks over times, norm and head."""
    S, D, L = config.hidden_size, data.channels, data.lookback
    embedding = linear_parameters("embedding", (S, D), EMBEDDING, bias=config.bias)
    layers = (
        *instance_norm_sizes(data, instance_norm, bias=config.bias),
        LayerSize(
            EMBEDDING,
            embedding,
            activations=ActivationSize(whole=L * S),
            flops=matrix_flops(S * D, L),
            repeated_flops=matrix_flops(S * D, L),
        ),
        position_size(config, L),
        *(block_size(config, block_name(index), L) for index in range(config.num_layers)),
        final_norm_size(config),
        horizon_head_size(data, hidden=S, bias=config.bias),
    )
    parts = (INSTANCE_NORM, EMBEDDING, POSITIONS, ATTENTION, FEED_FORWARD, NORMS, HEAD)
    return outline_of(layers, parts, L * S, instance_norm=instance_norm, positions=config.positions)


def mixer_outline(
    config: TransformerConfig, data: SeriesConfig, *, instance_norm: bool, share_layers: bool
) -> Outline:
    """It lists instance norm, blocks and head; blocks that share their layers are one."""
    applied = config.num_layers if share_layers else 1
    norms = ("time_norm",) if share_layers else ("time_norm", "channel_norm")
    blocks = (
        mixer_block_size(config, block_name(index), data.channels, applied, norms)
        for index in range(config.num_layers // applied)
    )
    layers = (*instance_norm_sizes(data, instance_norm), *blocks, horizon_head_size(data))
    parts = (INSTANCE_NORM, TIME_MIXING, CHANNEL_MIXING, NORMS, HEAD)
    return outline_of(layers, parts, data.channels * config.hidden_size, instance_norm=instance_norm)


def linear_outline(data: SeriesConfig, *, decomposed: bool) -> Outline:
    """It is one block: one map from lookback to horizon, or one of what a moving average leaves and one of itself."""
    shape = data.horizon, data.lookback
    maps = ("remainder", "average") if decomposed else ("output",)
    block = LayerSize(
        block_name(0),
        tuple(size for name in maps for size in linear_parameters(name, shape, HEAD)),
        is_block=True,
        activations=ActivationSize(whole=len(maps) * data.channels * data.lookback),
        flops=len(maps) * matrix_flops(data.horizon * data.lookback, data.channels),
    )
    return Outline((block,), {HEAD: "0"})


def outline_of(
    layers: tuple[LayerSize, ...],
    parts: tuple[str, ...],
    stream: int,
    *,
    instance_norm: bool,
    positions: str = "0",
) -> Outline:
    """It returns an outline of layers that hand on `stream` numbers. What takes a forecast back to the scale of its
    window is handed on beside them, and has a gradient, that of gain and bias."""
    absent = dict.fromkeys(parts, "0") | ({POSITIONS: positions} if POSITIONS in parts else {})
    return Outline(layers, absent, handed_on=2 if instance_norm else 1, stream=stream)


def instance_norm_sizes(
    data: SeriesConfig, instance_norm: bool, *, bias: bool = True
) -> tuple[LayerSize, ...]:
    """It describes the layer, if there is one: a gain for each channel, and a bias."""
    if not instance_norm:
        return ()
    names = ("weight", "bias") if bias else ("weight",)
    gains = tuple(ParameterSize(name, (data.channels,), INSTANCE_NORM) for name in names)
    kept = 2 * data.channels * data.lookback
    return (LayerSize(INSTANCE_NORM, gains, activations=ActivationSize(wide=kept)),)


def channel_block_size(config: TransformerConfig, name: str, channels: int) -> LayerSize:
    """Tokens are channels. In units of D L a block keeps the inputs of norm and attention; divided over tensor-parallel
    ranks it keeps queries, keys, values and what heads return."""
    parameters = tuple(self_attention_parameters(config))
    stream, heads = channels * config.hidden_size, config.attention.num_heads
    matrices = sum(parameter.size for parameter in parameters if len(parameter.shape) == 2)
    Q, K = query_and_key_rows(config)
    return LayerSize(
        name,
        parameters,
        tuple(spectral_buffers(config, parameters)),
        is_block=True,
        attentions=(AttentionSize("attention.core", heads),),
        activations=ActivationSize(
            whole=stream * (1 if config.norm_placement == "none" else 2),
            sharded=4 * channels * heads * config.head_size,
            masks=stream if config.dropout else 0,
            input=stream if config.activation_checkpointing else None,
        ),
        flops=matrix_flops(matrices, channels) + attention_flops(config, channels, channels),
        collectives=tuple(attention_collectives(config, (Q, K, K), channels)),
    )


def mixer_block_size(
    config: TransformerConfig, name: str, channels: int, applied: int, norms: tuple[str, ...]
) -> LayerSize:
    """A block mixes times with one matrix and channels with two, `applied` times one after another. In units of D L it
    keeps inputs of norms and matrices and what the first matrix gives; the inner width F of the others twice."""
    L, D, F = config.hidden_size, channels, config.ffn_size
    parameters = (
        *linear_parameters("mix_times", (L, L), TIME_MIXING),
        *linear_parameters("up", (F, D), CHANNEL_MIXING),
        *linear_parameters("down", (D, F), CHANNEL_MIXING),
    )
    gains = tuple(ParameterSize(f"{n}.{part}", (D * L,), NORMS) for n in norms for part in ("weight", "bias"))
    return LayerSize(
        name,
        (*gains, *parameters),
        is_block=True,
        activations=ActivationSize(
            whole=applied * L * (5 * D + 2 * F),
            masks=applied * L * (2 * D + F) if config.dropout else 0,
            input=D * L if config.activation_checkpointing else None,
        ),
        flops=applied * (matrix_flops(L * L, D) + matrix_flops(2 * D * F, L)),
    )


def horizon_head_size(data: SeriesConfig, hidden: int | None = None, *, bias: bool = True) -> LayerSize:
    """One map from lookback to horizon serves all channels; `hidden` numbers at each time become channels before it.
    Forecasts and errors are in fp32."""
    H, L, D = data.horizon, data.lookback, data.channels
    channels = linear_parameters("channels", (D, hidden), HEAD, bias=bias) if hidden else ()
    flops = matrix_flops(H * L, D) + matrix_flops(D * (hidden or 0), L)
    return LayerSize(
        HEAD,
        (*channels, *linear_parameters("output", (H, L), HEAD, bias=bias)),
        activations=ActivationSize(whole=D * (L + H), wide=2 * D * H),
        flops=flops,
        repeated_flops=flops,
    )


def linear_parameters(
    name: str, shape: tuple[int, int], part: str, *, bias: bool = True
) -> tuple[ParameterSize, ...]:
    """A linear layer that every tensor-parallel rank has whole, with its bias if it has one."""
    weight = ParameterSize(f"{name}.weight", shape, part)
    return (weight, ParameterSize(f"{name}.bias", shape[:1], part)) if bias else (weight,)
