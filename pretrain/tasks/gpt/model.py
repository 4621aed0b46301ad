"""Decoder-only GPT as a list of layers.

B  samples in a micro-batch, S  tokens in a sequence, D  hidden size
V  padded vocabulary, W  the rows of it on this tensor rank
"""

from torch import Tensor, nn

from parallel.pipeline import LayerSpec
from parallel.rng import dropout
from parallel.vocab import VocabularyParallelEmbedding, VocabularyParallelHead
from pretrain.models.blocks import TransformerBlock
from pretrain.models.context import LayerContext

EMBEDDING_TIE = "embedding"


class TokenEmbedding(VocabularyParallelEmbedding):
    """Token ids (B, S) -> (B, S, D)."""

    def __init__(self, context: LayerContext) -> None:
        config = context.config
        super().__init__(
            config.vocabulary_size,
            config.padded_vocabulary_size,
            config.hidden_size,
            context.weight("embedding"),
            context.mesh.tensor,
        )


class EmbeddingPositions(nn.Module):
    """Adds learned positions, where the model has them, and drops out: (B, S, D) -> (B, S, D)."""

    def __init__(self, context: LayerContext, sequence_length: int) -> None:
        super().__init__()
        self.streams = context.streams
        self.dropout = context.config.dropout
        self.positions_SD: nn.Parameter | None = None
        if context.config.positions == "learned":
            init = context.weight("positions")
            table = init.rows(0, sequence_length, sequence_length, context.config.hidden_size)
            self.positions_SD = nn.Parameter(table)

    def forward(self, x_BSD: Tensor) -> Tensor:
        if self.positions_SD is not None:
            x_BSD = x_BSD + self.positions_SD[: x_BSD.shape[1]]
        if self.training and self.dropout:
            x_BSD = dropout(x_BSD, self.dropout, self.streams.draw("positions").replicated("embedding"))
        return x_BSD


class FinalNorm(nn.Module):
    """Normalization before the head: (B, S, D) -> (B, S, D).

    Where blocks end in a norm (`post`) or there are none it is the identity, so that the partition is the same.
    """

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.norm = context.norm() if context.config.norm_placement == "pre" else nn.Identity()

    def forward(self, x_BSD: Tensor) -> Tensor:
        y_BSD: Tensor = self.norm(x_BSD)
        return y_BSD


class LanguageModelHead(VocabularyParallelHead):
    """(B, S, D) -> logits (B, S, W)."""

    def __init__(self, context: LayerContext) -> None:
        config = context.config
        super().__init__(
            config.vocabulary_size,
            config.padded_vocabulary_size,
            config.hidden_size,
            context.weight("head"),
            context.mesh.tensor,
        )


def gpt_layers(context: LayerContext, sequence_length: int) -> list[LayerSpec]:
    """Embedding, positions, blocks, final norm, head."""
    tie = EMBEDDING_TIE if context.config.tied_embeddings else None
    shared = {"context": context}
    blocks = [LayerSpec(TransformerBlock, {**shared, "index": i}) for i in range(context.config.num_layers)]
    return [
        LayerSpec(TokenEmbedding, shared, tie=tie),
        LayerSpec(EmbeddingPositions, {**shared, "sequence_length": sequence_length}),
        *blocks,
        LayerSpec(FinalNorm, shared),
        LayerSpec(LanguageModelHead, shared, tie=tie),
    ]
