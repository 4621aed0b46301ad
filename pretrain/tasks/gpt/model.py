"""A decoder-only GPT is a list of layers."""

from parallel.pipeline import LayerSpec
from pretrain.models.blocks import TransformerBlock
from pretrain.models.config import VocabularyConfig
from pretrain.models.context import LayerContext
from pretrain.models.embeddings import EmbeddingPositions, FinalNorm, TokenEmbedding, VocabularyHead

EMBEDDING_TIE = "embedding"


def gpt_layers(context: LayerContext, vocabulary: VocabularyConfig, sequence_length: int) -> list[LayerSpec]:
    """It lists embedding, positions, blocks, final norm and head."""
    tie = EMBEDDING_TIE if vocabulary.tied_embeddings else None
    shared = {"context": context}
    table = {**shared, "vocabulary": vocabulary}
    blocks = [LayerSpec(TransformerBlock, {**shared, "index": i}) for i in range(context.config.num_layers)]
    return [
        LayerSpec(TokenEmbedding, table, tie=tie),
        LayerSpec(EmbeddingPositions, {**shared, "sequence_length": sequence_length}),
        *blocks,
        LayerSpec(FinalNorm, shared),
        LayerSpec(VocabularyHead, table, tie=tie),
    ]
