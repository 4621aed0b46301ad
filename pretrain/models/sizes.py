"""These are the sizes of the layers that tasks share, for their outlines: parameters by name, activations, FLOPs.

Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, equation 2), item by item, without the S x S matrices,
which flash attention does not keep. FLOPs follow Chowdhery et al. 2022 (arXiv 2204.02311, appendix B).

S  tokens in a sequence     T  tokens of one that asks another of S
D  hidden size              F  feed-forward size
Q  query heads * head size  K  key-value heads * head size      R  rank of low-rank attention
V  padded vocabulary
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pretrain.models.collectives import (
    block_collectives,
    decoder_block_collectives,
    embedding_collectives,
    head_collectives,
)
from pretrain.models.config import TransformerConfig, VocabularyConfig
from pretrain.models.outline import (
    ActivationSize,
    AttentionSize,
    BufferSize,
    LayerSize,
    ParameterSize,
    TableSize,
)

EMBEDDING, POSITIONS, ATTENTION = "embedding", "positions", "attention"
FEED_FORWARD, NORMS, HEAD = "feed_forward", "norms", "head"
"""Parts that parameters belong to."""
KEY_VALUE = "cross_attention.key_value"
"""The projection of a decoder's block that reads the states of the encoder."""


def block_name(number: int) -> str:
    """It returns the name of a block in measures, such as `layer_07`."""
    return f"layer_{number:02d}"


def matrix_flops(elements: int, tokens: int) -> float:
    """It counts training FLOPs of `tokens` tokens in matrices of so many elements: 2 forward, 4 backward for each."""
    return 6.0 * elements * tokens


def attention_flops(config: TransformerConfig, queries: int, keys: int) -> float:
    """It counts training FLOPs of q k^T and its product with v: the whole rectangle, as usual for utilisation."""
    return 12.0 * config.attention.num_heads * config.head_size * queries * keys


def block_size(config: TransformerConfig, name: str, tokens: int) -> LayerSize:
    """It describes one Transformer block over sequences of `tokens` tokens."""
    parameters = tuple(block_parameters(config))
    matrices = sum(parameter.size for parameter in parameters if len(parameter.shape) == 2)
    Q, K = query_and_key_rows(config)
    return LayerSize(
        name,
        parameters,
        tuple(spectral_buffers(config, parameters)),
        is_block=True,
        attentions=(AttentionSize("attention.core", config.attention.num_heads),),
        activations=block_activations(config, tokens),
        flops=matrix_flops(matrices, tokens) + attention_flops(config, tokens, tokens),
        repeated_flops=matrix_flops(whole_elements(parameters), tokens),
        collectives=tuple(block_collectives(config, (Q, K, K), tokens)),
    )


def decoder_block_size(config: TransformerConfig, name: str, tokens: int, states: int) -> LayerSize:
    """It describes a block over sequences of `tokens` tokens that also asks `states` states of an encoder."""
    parameters = tuple(decoder_block_parameters(config))
    sizes = {parameter.name: parameter.size for parameter in parameters if len(parameter.shape) == 2}
    of_states = sum(size for key, size in sizes.items() if key.startswith(KEY_VALUE))
    whole_of_states = whole_elements(p for p in parameters if p.name.startswith(KEY_VALUE))
    heads, (Q, K) = config.attention.num_heads, query_and_key_rows(config)
    return LayerSize(
        name,
        parameters,
        tuple(spectral_buffers(config, parameters)),
        is_block=True,
        attentions=(
            AttentionSize("attention.core", heads),
            AttentionSize("cross_attention.core", heads, "cross"),
        ),
        activations=decoder_block_activations(config, tokens, states),
        flops=matrix_flops(sum(sizes.values()) - of_states, tokens)
        + matrix_flops(of_states, states)
        + attention_flops(config, tokens, tokens + states),
        repeated_flops=matrix_flops(whole_elements(parameters) - whole_of_states, tokens)
        + matrix_flops(whole_of_states, states),
        collectives=tuple(decoder_block_collectives(config, (Q, K, K), tokens, states)),
    )


def whole_elements(parameters: Iterable[ParameterSize]) -> int:
    """It counts the elements of the matrices that every tensor-parallel rank has whole."""
    return sum(p.size for p in parameters if len(p.shape) == 2 and p.sharded is None)


def block_parameters(config: TransformerConfig) -> Iterator[ParameterSize]:
    """It yields the parameters of a block in the order of its module."""
    yield from self_attention_parameters(config)
    yield from feed_forward_parameters(config)


def decoder_block_parameters(config: TransformerConfig) -> Iterator[ParameterSize]:
    """It yields the parameters of a block with cross-attention in the order of its module."""
    D, Q, K = config.hidden_size, *query_and_key_rows(config)
    yield from self_attention_parameters(config)
    yield from norm_parameters(config, "cross_norm")
    yield from projection_parameters(config, "cross_attention.query", (Q,))
    yield from projection_parameters(config, KEY_VALUE, (K, K))
    yield from row_parameters(config, "cross_attention.output", ATTENTION, (D, Q))
    yield from feed_forward_parameters(config)


def self_attention_parameters(config: TransformerConfig) -> Iterator[ParameterSize]:
    """Self-attention has a norm, projections to queries, keys and values, and that back to the stream."""
    D, Q, K = config.hidden_size, *query_and_key_rows(config)
    yield from norm_parameters(config, "attention_norm")
    yield from projection_parameters(config, "attention.qkv", (Q, K, K))
    yield from row_parameters(config, "attention.output", ATTENTION, (D, Q))


def feed_forward_parameters(config: TransformerConfig) -> Iterator[ParameterSize]:
    """The feed-forward layer has a norm, one matrix up, which for SwiGLU is two stacked, and one down."""
    D, F = config.hidden_size, config.ffn_size
    gates = (F, F) if config.activation == "swiglu" else ()
    yield from norm_parameters(config, "feed_forward_norm")
    yield from column_parameters(config, "feed_forward.up", FEED_FORWARD, (sum(gates) or F, D), gates)
    yield from row_parameters(config, "feed_forward.down", FEED_FORWARD, (D, F))


def query_and_key_rows(config: TransformerConfig) -> tuple[int, int]:
    """It counts the features of queries over all heads, and those of keys, which are as many as those of values."""
    return config.attention.num_heads * config.head_size, config.num_key_value_heads * config.head_size


def projection_parameters(
    config: TransformerConfig, name: str, rows: Sequence[int]
) -> Iterator[ParameterSize]:
    """Queries, keys and values, or some of them, come from one stacked matrix, or from stacked D and a U for each."""
    D, R, parts = config.hidden_size, config.attention_rank, len(rows)
    if config.attention.kind == "dense":
        yield from column_parameters(config, f"{name}.linear", ATTENTION, (sum(rows), D), stack(rows))
        return
    sharded = 0 if config.attention.down_projection == "sharded" else None
    yield ParameterSize(
        f"{name}.down.weight", (parts * R, D), ATTENTION, sharded, stacked=stack((R,) * parts)
    )
    for number, count in enumerate(rows):
        yield from column_parameters(config, f"{name}.up.{number}", ATTENTION, (count, R))


def stack(rows: Sequence[int]) -> tuple[int, ...]:
    """It returns how matrices of these rows are stacked; a single one is not."""
    return tuple(rows) if len(rows) > 1 else ()


def norm_parameters(config: TransformerConfig, name: str) -> Iterator[ParameterSize]:
    """A norm has a gain and, for LayerNorm with biases, a bias; a model without norms has the identity in its place."""
    if config.norm_placement == "none":
        return
    yield ParameterSize(f"{name}.weight", (config.hidden_size,), NORMS)
    if config.bias and config.normalization == "layer_norm":
        yield ParameterSize(f"{name}.bias", (config.hidden_size,), NORMS)


def column_parameters(
    config: TransformerConfig, name: str, part: str, shape: tuple[int, int], stacked: tuple[int, ...] = ()
) -> Iterator[ParameterSize]:
    """It yields the parameters of a linear layer whose outputs are divided over tensor-parallel ranks."""
    yield ParameterSize(f"{name}.weight", shape, part, sharded=0, stacked=stacked)
    if config.bias:
        yield ParameterSize(f"{name}.bias", shape[:1], part, sharded=0, stacked=stacked)


def row_parameters(
    config: TransformerConfig, name: str, part: str, shape: tuple[int, int]
) -> Iterator[ParameterSize]:
    """It yields the parameters of a linear layer whose inputs are divided over tensor-parallel ranks."""
    yield ParameterSize(f"{name}.weight", shape, part, sharded=1)
    if config.bias:
        yield ParameterSize(f"{name}.bias", shape[:1], part)


def spectral_buffers(config: TransformerConfig, parameters: Iterable[ParameterSize]) -> Iterator[BufferSize]:
    """It yields what sigmaReparam keeps of every matrix of a block (`parallel.spectral`): the vectors that every
    tensor-parallel rank has whole, the other ones, divided as the matrix is, sigma and gamma."""
    if config.reparametrization == "none":
        return
    for weight in parameters:
        if len(weight.shape) != 2:
            continue
        name = weight.name.removesuffix("weight") + "spectral"
        rows, columns = weight.shape
        whole, other = (rows, columns) if weight.sharded == 1 else (columns, rows)
        vectors = min(config.sigma_vectors, whole)
        yield BufferSize(f"{name}.basis_KRV", (weight.matrices, whole, vectors))
        sharded = None if weight.sharded is None else 0
        yield BufferSize(f"{name}.sharded_L", (other,), sharded, weight.stacked)
        yield BufferSize(f"{name}.sigma_K", (weight.matrices,))
        yield BufferSize(f"{name}.gamma_K", (weight.matrices,))


def block_activations(config: TransformerConfig, tokens: int) -> ActivationSize:
    """It says what a block keeps of one sample.

    In units of S D: the inputs of both norms and of both sub-layers (4; without norms 2), and the latents of low-rank
    attention (3 R / D), whole on every rank; divided over tensor-parallel ranks: queries and attention output (2), keys
    and values (2 k for k key-value heads a query head), and the inner feed-forward layer, 2 F/D for GELU (its input and
    output), 4 F/D for SwiGLU (gate, value, silu, product). Dropout adds 2 masks of one byte. A block that is recomputed
    keeps its input.
    """
    stream = tokens * config.hidden_size
    grouped = config.num_key_value_heads / config.attention.num_heads
    feed_forward = (2 if config.activation == "gelu" else 4) * config.ffn_size / config.hidden_size
    inputs = 2 if config.norm_placement == "none" else 4
    latents = 3 * config.attention_rank / config.hidden_size if config.attention.kind == "mlra" else 0
    return ActivationSize(
        whole=stream * (inputs + latents),
        sharded=stream * (2 + 2 * grouped + feed_forward),
        masks=2 * stream if config.dropout else 0,
        input=stream if config.activation_checkpointing else None,
    )


def decoder_block_activations(config: TransformerConfig, tokens: int, states: int) -> ActivationSize:
    """It says what a block with cross-attention keeps of one sample beside what any block does.

    In units of T D: the inputs of norm and sub-layer (2; without norms 1); divided over tensor-parallel ranks: queries
    and attention output (2). In units of S D, divided: keys and values (2 k). Low-rank attention has R T + 2 R S of
    latents. The states themselves are kept once, by the encoder.
    """
    block = block_activations(config, tokens)
    stream, source = tokens * config.hidden_size, states * config.hidden_size
    inputs = 1 if config.norm_placement == "none" else 2
    latents = config.attention_rank * (tokens + 2 * states) if config.attention.kind == "mlra" else 0
    grouped = config.num_key_value_heads / config.attention.num_heads
    return replace(
        block,
        whole=block.whole + inputs * stream + latents,
        sharded=block.sharded + 2 * stream + 2 * grouped * source,
        masks=block.masks + (stream if config.dropout else 0),
    )


def embedding_size(
    config: TransformerConfig,
    vocabulary: VocabularyConfig,
    tokens: int,
    name: str = "embedding",
    measures: str = "tev",
    input: int = 0,
) -> LayerSize:
    """A token embedding looks up rows for the ids in `inputs[input]` of a batch, `tokens` in a sample."""
    shape = vocabulary.padded_vocabulary_size, config.hidden_size
    return LayerSize(
        name,
        (ParameterSize("weight", shape, EMBEDDING, sharded=0, looked_up=True),),
        table=TableSize(vocabulary.vocabulary_size, config.hidden_size, measures, input=input),
        collectives=tuple(embedding_collectives(config, tokens)),
    )


def position_size(config: TransformerConfig, tokens: int, name: str = "positions") -> LayerSize:
    """It describes positions, of which learned ones are parameters, and the dropout of the embedding."""
    table = ParameterSize("positions_SD", (tokens, config.hidden_size), POSITIONS, looked_up=True)
    return LayerSize(name, (table,) if config.positions == "learned" else ())


def final_norm_size(config: TransformerConfig, name: str = "final_norm") -> LayerSize:
    """The norm before the head has no parameters where blocks end in a norm or there are none."""
    return LayerSize(name, tuple(norm_parameters(config, "norm")) if config.norm_placement == "pre" else ())


def head_size(
    config: TransformerConfig,
    vocabulary: VocabularyConfig,
    tokens: int,
    name: str = "head",
    tied_to: str = "embedding",
) -> LayerSize:
    """The head over the vocabulary keeps its logits in the compute dtype; their gradient takes their place."""
    rows = vocabulary.padded_vocabulary_size
    own = ParameterSize("weight", (rows, config.hidden_size), HEAD, sharded=0)
    return LayerSize(
        name,
        () if vocabulary.tied_embeddings else (own,),
        tied_to=tied_to if vocabulary.tied_embeddings else "",
        table=TableSize(vocabulary.vocabulary_size, config.hidden_size, f"tev_{name}", watched=False),
        activations=ActivationSize(sharded=tokens * rows),
        flops=matrix_flops(rows * config.hidden_size, tokens),
        collectives=tuple(head_collectives(config, rows, tokens)),
    )
