"""A whole encoder-decoder in one process, or its tensor-parallel share, is decoded in two halves.

B  sources, S  tokens of the longest, D  hidden size
"""

import torch
from torch import Tensor, nn

from data_pipeline.translation.batch import PADDING
from parallel.pipeline import SequentialLayers
from pretrain.models.cache import EncoderStates
from pretrain.tasks.translation.model import TargetEmbedding


class EncoderDecoder:
    """The encoder reads sources at once; the decoder's layers are for `pretrain.models.cache.decode`."""

    def __init__(self, model: SequentialLayers) -> None:
        """`model` is that of `translation_layers`."""
        begin = next(i for i, layer in enumerate(model.layers) if isinstance(layer, TargetEmbedding))
        self.encoder: nn.ModuleList = model.layers[:begin]
        self.decoder: nn.ModuleList = model.layers[begin:]

    @torch.no_grad()
    def read(self, source_BS: Tensor) -> EncoderStates:
        """It returns what cross-attention asks of the sources, int64, which are padded behind their ends."""
        flow = (source_BS, source_BS[:, :0])  # the decoder's tokens would go along
        for layer in self.encoder:
            flow = layer(flow)
        return EncoderStates(flow[0], source_BS != PADDING)
