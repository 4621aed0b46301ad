"""This module has the outline of an encoder-decoder."""

from dataclasses import dataclass, replace

from pretrain.models.config import TransformerConfig, VocabularyConfig
from pretrain.models.outline import Outline
from pretrain.models.sizes import (
    ATTENTION,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    NORMS,
    POSITIONS,
    block_size,
    decoder_block_size,
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
    HEAD: "tied to an embedding",
}
"""Parts of the parameters, each with what to say where it has none."""
SOURCE, TARGET = "embedding_source", "embedding_target"
"""Layers with the tables of either side."""


@dataclass(frozen=True)
class Sides:
    """An encoder-decoder has two stacks and two vocabularies."""

    encoder: TransformerConfig
    decoder: TransformerConfig
    source: VocabularyConfig
    target: VocabularyConfig
    joint: bool
    """Whether both sides and the head use one table."""


def translation_outline(sides: Sides, source_length: int, target_length: int) -> Outline:
    """It lists embedding, positions, blocks and norm of either side, and the head, for the longest sentences."""
    encoder, decoder, tokens = sides.encoder, sides.decoder, target_length
    target = embedding_size(decoder, sides.target, target_length, TARGET, "tev_target", input=1)
    if sides.joint:
        target = replace(target, parameters=(), tied_to=SOURCE)
    return Outline(
        (
            embedding_size(encoder, sides.source, source_length, SOURCE),
            position_size(encoder, source_length, "positions_source"),
            *(block_size(encoder, f"encoder_{i:02d}", source_length) for i in range(encoder.num_layers)),
            final_norm_size(encoder, "encoder_norm"),
            target,
            position_size(decoder, tokens, "positions_target"),
            *(
                decoder_block_size(decoder, f"decoder_{i:02d}", tokens, source_length)
                for i in range(decoder.num_layers)
            ),
            final_norm_size(decoder),
            head_size(decoder, sides.target, tokens, tied_to=target.tied_to or TARGET),
        ),
        PARTS | {POSITIONS: decoder.positions},
        handed_on=2,
        stream=(source_length + target_length) * encoder.hidden_size,
    )
