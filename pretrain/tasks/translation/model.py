"""An encoder-decoder is a list of layers, of which each hands on what the ones behind it need.

B  samples in a micro-batch, S  tokens of the source, T  tokens of the target, D  hidden size

Through the encoder flow (stream (B, S, D), source, inputs), through the decoder (stream (B, T, D), states (B, S, D),
source, inputs): the ids go along, for every block must know what is padding, and a stage of a pipeline has nothing but
what the one before it hands on. In decoding the cache has what goes along, and layers of the decoder take the stream.
"""

# Layers of a flow take and return a tuple, where those that they are made of take and return one tensor:
# mypy: disable-error-code="override"

from torch import Tensor

from data_pipeline.translation.batch import PADDING
from parallel.pipeline import LayerSpec
from pretrain.models.blocks import TransformerBlock
from pretrain.models.cache import CachedLayer, KeyValueCache
from pretrain.models.config import VocabularyConfig
from pretrain.models.context import LayerContext
from pretrain.models.cross_attention import DecoderBlock
from pretrain.models.embeddings import EmbeddingPositions, FinalNorm, TokenEmbedding, VocabularyHead

Flow = tuple[Tensor, ...]


class SourceEmbedding(TokenEmbedding):
    """It maps (source, inputs), the ids of both sides, to the flow through the encoder."""

    def forward(self, ids: Flow) -> Flow:
        source_BS, inputs_BT = ids
        return super().forward(source_BS), source_BS, inputs_BT


class StreamPositions(EmbeddingPositions):
    """It gives the stream of a flow its positions."""

    def forward(self, flow: Flow) -> Flow:
        stream, *others = flow
        return super().forward(stream), *others


class EncoderBlock(TransformerBlock):
    """Every token of the source sees all others that are not padding."""

    sizes_vary = True

    def __init__(self, context: LayerContext, index: int) -> None:
        super().__init__(context, index, stack="encoder", causal=False)

    def forward(self, flow: Flow) -> Flow:
        x_BSD, source_BS, inputs_BT = flow
        return super().forward(x_BSD, source_BS != PADDING), source_BS, inputs_BT


class EncoderNorm(FinalNorm):
    """It normalizes the states that cross-attention reads."""

    def forward(self, flow: Flow) -> Flow:
        x_BSD, *others = flow
        return super().forward(x_BSD), *others


class TargetEmbedding(TokenEmbedding, CachedLayer):
    """It begins the stream of the decoder; that of the encoder becomes the states."""

    def forward(self, flow: Flow) -> Flow:
        states_BSD, source_BS, inputs_BT = flow
        return super().forward(inputs_BT), states_BSD, source_BS, inputs_BT

    def decode(self, inputs_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T) -> (B, T, D)."""
        return super().forward(inputs_BT)


class TargetBlock(DecoderBlock):
    """A token of the target sees those before it, and the whole source."""

    sizes_vary = True

    def forward(self, flow: Flow) -> Flow:
        y_BTD, states_BSD, source_BS, inputs_BT = flow
        y_BTD = super().forward(y_BTD, states_BSD, source_BS != PADDING, inputs_BT != PADDING)
        return y_BTD, states_BSD, source_BS, inputs_BT


class TargetNorm(FinalNorm, CachedLayer):
    """It normalizes what goes into the head, and hands nothing else on: flow -> (B, T, D)."""

    def forward(self, flow: Flow) -> Tensor:
        return super().forward(flow[0])

    def decode(self, y_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T, D) -> (B, T, D)."""
        return super().forward(y_BTD)


def translation_layers(
    encoder: LayerContext,
    decoder: LayerContext,
    vocabularies: tuple[VocabularyConfig, VocabularyConfig],
    lengths: tuple[int, int],
) -> list[LayerSpec]:
    """It lists embedding, positions, blocks and norm of either side, and the head.

    `vocabularies` and `lengths`, the most tokens of a sentence, are of source and target; a vocabulary says whether the
    head uses its table.
    """
    (source, target), of_source, of_target = vocabularies, {"context": encoder}, {"context": decoder}
    table = {**of_target, "vocabulary": target}
    joint, tied = "table" if source.tied_embeddings else None, "table" if target.tied_embeddings else None
    encoders, decoders = range(encoder.config.num_layers), range(decoder.config.num_layers)
    return [
        LayerSpec(SourceEmbedding, {**of_source, "vocabulary": source, "name": "source"}, tie=joint),
        LayerSpec(StreamPositions, {**of_source, "sequence_length": lengths[0], "name": "positions.source"}),
        *(LayerSpec(EncoderBlock, {**of_source, "index": index}) for index in encoders),
        LayerSpec(EncoderNorm, of_source),
        LayerSpec(TargetEmbedding, {**table, "name": "target"}, tie=tied),
        LayerSpec(StreamPositions, {**of_target, "sequence_length": lengths[1], "name": "positions.target"}),
        *(LayerSpec(TargetBlock, {**of_target, "index": index}) for index in decoders),
        LayerSpec(TargetNorm, of_target),
        LayerSpec(VocabularyHead, table, tie=tied),
    ]
