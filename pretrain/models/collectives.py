"""These are the collectives of tensor-parallel ranks in the layers that tasks share, for their outlines.

A layer whose outputs are divided sums the gradient of its input over the ranks, beside the product for the gradient of
its weight; one whose inputs are divided sums its output. A test counts those of real steps.

S  tokens in a sequence     T  tokens of one that asks another of S
D  hidden size              R  rank of low-rank attention      V  padded vocabulary
"""

from collections.abc import Iterator, Sequence

from pretrain.models.config import TransformerConfig
from pretrain.models.outline import CollectiveSize

Collectives = Iterator[CollectiveSize]


def block_collectives(config: TransformerConfig, rows: Sequence[int], tokens: int) -> Collectives:
    """It yields those of a block: S D numbers for each branch forward, and for each backward.

    `rows` are the features of queries, keys and values, over all heads.
    """
    yield sums_of_outputs(config, tokens, branches=2)
    yield from projection_collectives(config, rows, tokens)
    yield sum_of_gradients(config.hidden_size, up_rows(config), tokens)


def decoder_block_collectives(
    config: TransformerConfig, rows: Sequence[int], tokens: int, states: int
) -> Collectives:
    """It yields those of a block of T tokens that also asks S states of an encoder."""
    yield sums_of_outputs(config, tokens, branches=3)
    yield from projection_collectives(config, rows, tokens)
    yield from projection_collectives(config, rows[:1], tokens)
    yield from projection_collectives(config, rows[1:], states)
    yield sum_of_gradients(config.hidden_size, up_rows(config), tokens)


def attention_collectives(config: TransformerConfig, rows: Sequence[int], tokens: int) -> Collectives:
    """It yields those of a block that is attention alone."""
    yield sums_of_outputs(config, tokens, branches=1)
    yield from projection_collectives(config, rows, tokens)


def sums_of_outputs(config: TransformerConfig, tokens: int, branches: int) -> CollectiveSize:
    """The outputs of a block's branches are summed, once more where the block is recomputed.

    Recomputation ends with the last tensor that was kept: behind the sum of the last branch there is none, but with
    dropout or a norm.
    """
    again = 0
    if config.activation_checkpointing:
        kept = config.dropout or config.norm_placement in ("post", "deepnorm")
        again = branches if kept else branches - 1
    return CollectiveSize("all_reduce", tokens * config.hidden_size, branches + again)


def projection_collectives(config: TransformerConfig, rows: Sequence[int], tokens: int) -> Collectives:
    """It yields those of queries, keys and values, or of some of them.

    Low-rank ones sum the gradient of their latents, R for each part (`replicated`), or gather latents and scatter their
    gradient (`sharded`), beside what a dense projection of so many rows does.
    """
    latents = len(rows) * config.attention_rank
    if config.attention.kind == "dense":
        yield sum_of_gradients(config.hidden_size, sum(rows), tokens)
    elif config.attention.down_projection == "replicated":
        yield CollectiveSize("all_reduce", tokens * latents)
    else:
        yield CollectiveSize("all_gather", tokens * latents, 2 if config.activation_checkpointing else 1)
        yield CollectiveSize("reduce_scatter", tokens * latents)
        yield sum_of_gradients(config.hidden_size, latents, tokens)


def sum_of_gradients(inputs: int, rows: int, tokens: int) -> CollectiveSize:
    """The gradient of what goes into a matrix with divided rows is summed while that of the matrix is computed."""
    return CollectiveSize("all_reduce", tokens * inputs, beside=2.0 * inputs * rows * tokens)


def embedding_collectives(config: TransformerConfig, tokens: int) -> Collectives:
    """Every rank looks up the rows that it holds; their sum is the embedding."""
    yield CollectiveSize("all_reduce", tokens * config.hidden_size)


def head_collectives(config: TransformerConfig, rows: int, tokens: int) -> Collectives:
    """It yields those of the head and of the loss, which needs the largest logit of each token, the sum of their
    exponentials and the logit of the target."""
    yield sum_of_gradients(config.hidden_size, rows, tokens)
    yield CollectiveSize("all_reduce", tokens, wide=True)
    yield CollectiveSize("all_reduce", 2 * tokens, wide=True)


def up_rows(config: TransformerConfig) -> int:
    """It counts the rows of the feed-forward layer's first matrix."""
    return config.ffn_size * (2 if config.activation == "swiglu" else 1)
