"""These rules say what cannot work in the layers that tasks share, on a given number of tensor-parallel ranks."""

from collections.abc import Iterator, Mapping
from math import gcd, lcm

from parallel.config import ParallelConfig
from pretrain.errors import Problem
from pretrain.models.config import TransformerConfig, VocabularyConfig


def block_problems(model: TransformerConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    """It yields a problem for every rule that the blocks of a model break."""
    yield from heads_divide(model)
    yield from tensor_divides(model, parallel.tensor)
    yield from rank_divides(model, parallel.tensor)
    yield from zero_fits_reparametrization(model, parallel.zero_stage)
    yield from dropout_is_compiled(model)


def heads_divide(model: TransformerConfig) -> Iterator[Problem]:
    """Heads share the hidden size, and groups of them keys and values, without a remainder."""
    heads, groups = model.attention.num_heads, model.num_key_value_heads
    if model.hidden_size % heads:
        yield Problem(
            "model.hidden_size",
            f"must be a multiple of attention.num_heads = {heads}",
            f"for example {-(-model.hidden_size // heads) * heads}",
            str(model.hidden_size),
        )
    elif model.positions == "rotary" and model.head_size % 2:
        yield Problem(
            "model.hidden_size",
            f"gives heads of odd size {model.head_size}, but rotary positions turn pairs of numbers",
            f'for example {heads * (model.head_size + 1)}, or positions = "learned"',
            str(model.hidden_size),
        )
    if heads % groups:
        yield Problem(
            "model.attention.num_key_value_heads",
            f"must divide num_heads = {heads}",
            f"for example {gcd(heads, groups)}",
            str(groups),
        )


def tensor_divides(model: TransformerConfig, tensor: int) -> Iterator[Problem]:
    """Heads and feed-forward are divided over tensor-parallel ranks without a remainder."""
    sizes = {
        "model.attention.num_heads": model.attention.num_heads,
        "model.attention.num_key_value_heads": model.num_key_value_heads,
        "model.ffn_hidden_size": model.ffn_size,
    }
    yield from shares_are_whole(sizes, tensor)


def shares_are_whole(sizes: Mapping[str, int], tensor: int) -> Iterator[Problem]:
    """Sizes by their keys are divided over tensor-parallel ranks without a remainder."""
    for key, size in sizes.items():
        if size % tensor:
            above = -(-size // tensor) * tensor
            remedy = f"for example {above}, or parallel.tensor = {gcd(tensor, *sizes.values())}"
            yield Problem(key, f"must be a multiple of parallel.tensor = {tensor}", remedy, str(size))


def vocabulary_divides(model: VocabularyConfig, tensor: int) -> Iterator[Problem]:
    """The padded vocabulary is divided over tensor-parallel ranks without a remainder."""
    if model.padded_vocabulary_size % tensor:
        yield Problem(
            "model.vocabulary_multiple",
            f"pads the vocabulary to {model.padded_vocabulary_size}, "
            f"which parallel.tensor = {tensor} must divide",
            f"for example {lcm(model.vocabulary_multiple, tensor)}",
            str(model.vocabulary_multiple),
        )


def rank_divides(model: TransformerConfig, tensor: int) -> Iterator[Problem]:
    """Rows of sharded down-projections are divided over tensor-parallel ranks without a remainder."""
    sharded = model.attention.kind == "mlra" and model.attention.down_projection == "sharded"
    if sharded and model.attention_rank % tensor:
        yield Problem(
            "model.attention.rank",
            f'must be a multiple of parallel.tensor = {tensor} for down_projection = "sharded", '
            "which cuts each down-projection by its rows",
            f'for example {-(-model.attention_rank // tensor) * tensor}, or down_projection = "replicated"',
            str(model.attention_rank),
        )


def dropout_is_compiled(model: TransformerConfig) -> Iterator[Problem]:
    """What torch draws within its attention follows from the state of a generator, of which a graph has its own."""
    if model.compile and model.attention.dropout:
        yield Problem(
            "model.attention.dropout",
            "must be 0 with model.compile = true: a graph would draw masks that do not follow from the step",
            "for example 0 and model.dropout in its place, or compile = false",
            f"{model.attention.dropout:g}",
        )


def zero_fits_reparametrization(model: TransformerConfig, zero_stage: int) -> Iterator[Problem]:
    """Power steps need whole matrices, which ZeRO-3 takes apart."""
    if zero_stage == 3 and model.reparametrization != "none":
        yield Problem(
            "parallel.zero_stage",
            "must be 0, 1 or 2 with a reparametrization: power steps need whole matrices, "
            "and ZeRO-3 takes them apart between layers",
            "for example zero_stage = 1",
            "3",
        )
