"""This module has the outline of a GPT."""

from pretrain.models.config import TransformerConfig, VocabularyConfig
from pretrain.models.outline import Outline
from pretrain.models.sizes import (
    ATTENTION,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    NORMS,
    POSITIONS,
    block_name,
    block_size,
    embedding_size,
    final_norm_size,
    head_size,
    position_size,
)

PARTS = {
    EMBEDDING: "0",
    POSITIONS: "0",
    ATTENTION: "0",
    FEED_FORWARD: "0",
    NORMS: "0",
    HEAD: "tied to the embedding",
}
"""Parts of the parameters, each with what to say where it has none."""


def gpt_outline(model: TransformerConfig, vocabulary: VocabularyConfig, sequence_length: int) -> Outline:
    """It lists embedding, positions, blocks, final norm and head."""
    return Outline(
        (
            embedding_size(model, vocabulary, sequence_length),
            position_size(model, sequence_length),
            *(block_size(model, block_name(i), sequence_length) for i in range(model.num_layers)),
            final_norm_size(model),
            head_size(model, vocabulary, sequence_length),
        ),
        PARTS | {POSITIONS: model.positions},
        stream=sequence_length * model.hidden_size,
    )
