"""Shapes of all parameters of a model, known without building it.

V  padded vocabulary        S  tokens in a sequence     D  hidden size
F  feed-forward size        Q  query heads * head size  K  key-value heads * head size
R  rank of low-rank attention
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from parallel.partition import LAYERS_BEFORE_BLOCKS
from pretrain.config.run import ModelConfig


class Part(StrEnum):
    """What a parameter belongs to."""

    EMBEDDING = "embedding"
    POSITIONS = "positions"
    ATTENTION = "attention"
    FEED_FORWARD = "feed_forward"
    NORMS = "norms"
    HEAD = "head"


@dataclass(frozen=True)
class ParameterShape:
    """One parameter as the whole model has it."""

    layer: int
    """Index in the list of layers: embedding, positions, blocks, final norm, head."""
    part: Part
    name: str
    shape: tuple[int, ...]
    sharded: int | None = None
    """Dimension that tensor-parallel ranks divide among them; none: every one has a copy."""

    @property
    def size(self) -> int:
        return prod(self.shape)

    def size_per_rank(self, tensor: int) -> int:
        """Elements that one of `tensor` tensor-parallel ranks holds."""
        return self.size if self.sharded is None else self.size // tensor


def parameter_shapes(model: ModelConfig, sequence_length: int) -> tuple[ParameterShape, ...]:
    """All parameters in the order of the layers; a tied head has none of its own."""
    V, D, S = model.padded_vocabulary_size, model.hidden_size, sequence_length
    final_norm = LAYERS_BEFORE_BLOCKS + model.num_layers
    shapes = [ParameterShape(0, Part.EMBEDDING, "weight", (V, D), sharded=0)]
    if model.positions == "learned":
        shapes.append(ParameterShape(1, Part.POSITIONS, "weight", (S, D)))
    for layer in range(LAYERS_BEFORE_BLOCKS, final_norm):
        shapes += block_shapes(model, layer)
    if model.norm_placement == "pre":
        shapes += norm_shapes(model, final_norm, "norm")
    if not model.tied_embeddings:
        shapes.append(ParameterShape(final_norm + 1, Part.HEAD, "weight", (V, D), sharded=0))
    return tuple(shapes)


def block_shapes(model: ModelConfig, layer: int) -> Iterator[ParameterShape]:
    """One Transformer block."""
    D, F, Q = model.hidden_size, model.ffn_size, model.attention.num_heads * model.head_size
    up = 2 * F if model.activation == "swiglu" else F
    if model.norm_placement != "none":
        yield from norm_shapes(model, layer, "norm1")
        yield from norm_shapes(model, layer, "norm2")
    yield from projection_shapes(model, layer)
    yield from row_shapes(model, layer, Part.ATTENTION, "projection", (D, Q))
    yield from column_shapes(model, layer, Part.FEED_FORWARD, "up", (up, D))
    yield from row_shapes(model, layer, Part.FEED_FORWARD, "down", (D, F))


def projection_shapes(model: ModelConfig, layer: int) -> Iterator[ParameterShape]:
    """To queries, keys and values: one stacked matrix, or the stacked D and a U for each."""
    D, R = model.hidden_size, model.attention_rank
    Q, K = model.attention.num_heads * model.head_size, model.num_key_value_heads * model.head_size
    if model.attention.kind == "dense":
        yield from column_shapes(model, layer, Part.ATTENTION, "qkv", (Q + 2 * K, D))
        return
    sharded = 0 if model.attention.down_projection == "sharded" else None
    yield ParameterShape(layer, Part.ATTENTION, "down.weight", (3 * R, D), sharded)
    for name, rows in (("query", Q), ("key", K), ("value", K)):
        yield from column_shapes(model, layer, Part.ATTENTION, name, (rows, R))


def norm_shapes(model: ModelConfig, layer: int, name: str) -> Iterator[ParameterShape]:
    """Gain and, for LayerNorm with biases, bias."""
    yield ParameterShape(layer, Part.NORMS, f"{name}.weight", (model.hidden_size,))
    if model.bias and model.normalization == "layer_norm":
        yield ParameterShape(layer, Part.NORMS, f"{name}.bias", (model.hidden_size,))


def column_shapes(
    model: ModelConfig, layer: int, part: Part, name: str, shape: tuple[int, int]
) -> Iterator[ParameterShape]:
    """A linear layer whose outputs are divided over tensor-parallel ranks."""
    yield ParameterShape(layer, part, f"{name}.weight", shape, sharded=0)
    if model.bias:
        yield ParameterShape(layer, part, f"{name}.bias", shape[:1], sharded=0)


def row_shapes(
    model: ModelConfig, layer: int, part: Part, name: str, shape: tuple[int, int]
) -> Iterator[ParameterShape]:
    """A linear layer whose inputs are divided over tensor-parallel ranks."""
    yield ParameterShape(layer, part, f"{name}.weight", shape, sharded=1)
    if model.bias:
        yield ParameterShape(layer, part, f"{name}.bias", shape[:1])
