"""An encoder of speech is a list of layers: subsampling, positions, blocks, norm and head.

B  utterances in a micro-batch, F  frames of features, M  mel bins
T  outputs, ceil(F / stride), D  hidden size, V  units

From layer to layer flow (stream (B, T, D), real (B, T)): every block must know which outputs are padding. NCCL carries
no booleans between the stages of a pipeline, so `real` is of bytes: 1, and 0 for padding.
"""

# Layers of a flow take and return a tuple, where those that they are made of take and return one tensor:
# mypy: disable-error-code="override"

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.pipeline import LayerSpec
from pretrain.models.blocks import TransformerBlock
from pretrain.models.context import LayerContext
from pretrain.models.embeddings import EmbeddingPositions, FinalNorm
from pretrain.tasks.speech.config import SubsamplingConfig, output_frames

Flow = tuple[Tensor, ...]


class Subsampling(nn.Module):
    """A convolution over time with gated linear units makes the stream: (features (B, F, M), frames (B)) -> flow.

    It is that of the models of speech of Zhai et al. 2023 (arXiv 2303.06296): kernel 7, stride 3. What it makes of an
    utterance does not depend on the padding behind it, which is 0 as the features are around their ends.
    """

    def __init__(self, context: LayerContext, mel_bins: int, subsampling: SubsamplingConfig) -> None:
        super().__init__()
        rows, kernel, self.stride = 2 * context.config.hidden_size, subsampling.kernel, subsampling.stride
        self.convolution = nn.Conv1d(
            mel_bins, rows, kernel, self.stride, padding=kernel // 2, bias=context.config.bias
        )
        columns = mel_bins * kernel
        # Features have variance 1, and so have the outputs.
        init = context.normal("subsampling", columns**-0.5)
        self.convolution.weight = nn.Parameter(init.rows(0, rows, rows, columns).view(rows, mel_bins, kernel))
        if self.convolution.bias is not None:
            nn.init.zeros_(self.convolution.bias)

    def forward(self, inputs: Flow) -> Flow:
        features_BFM, frames_B = inputs
        x_BFM = features_BFM.to(self.convolution.weight.dtype)
        x_BTD = F.glu(self.convolution(x_BFM.transpose(1, 2)), dim=1).transpose(1, 2)
        outputs = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        real_BT = outputs < output_frames(frames_B, self.stride)[:, None]
        return x_BTD.contiguous(), real_BT.byte()


class StreamPositions(EmbeddingPositions):
    """It gives the stream of a flow its positions."""

    def forward(self, flow: Flow) -> Flow:
        stream, *others = flow
        return super().forward(stream), *others


class EncoderBlock(TransformerBlock):
    """Every output sees all others that are not padding."""

    sizes_vary = True

    def __init__(self, context: LayerContext, index: int) -> None:
        super().__init__(context, index, causal=False)

    def forward(self, flow: Flow) -> Flow:
        x_BTD, real_BT = flow
        return super().forward(x_BTD, real_BT.bool()), real_BT


class StreamNorm(FinalNorm):
    """It normalizes what goes into the head, and hands nothing else on: flow -> (B, T, D)."""

    def forward(self, flow: Flow) -> Tensor:
        return super().forward(flow[0])


class UnitHead(nn.Module):
    """It maps (B, T, D) -> logits of all units (B, T, V), on every tensor-parallel rank: CTC needs them all, and they
    are few."""

    def __init__(self, context: LayerContext, vocabulary_size: int) -> None:
        super().__init__()
        columns = context.config.hidden_size
        self.output = nn.Linear(columns, vocabulary_size, bias=context.config.bias)
        init = context.weight("head")
        self.output.weight = nn.Parameter(init.rows(0, vocabulary_size, vocabulary_size, columns))
        if self.output.bias is not None:
            nn.init.zeros_(self.output.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        logits_BTV: Tensor = self.output(x_BTD)
        return logits_BTV


def speech_layers(
    context: LayerContext, mel_bins: int, subsampling: SubsamplingConfig, outputs: int, vocabulary_size: int
) -> list[LayerSpec]:
    """It lists subsampling, positions, blocks, norm and head; `outputs` are those of the longest utterance."""
    shared = {"context": context}
    return [
        LayerSpec(Subsampling, {**shared, "mel_bins": mel_bins, "subsampling": subsampling}),
        LayerSpec(StreamPositions, {**shared, "sequence_length": outputs, "factor": 1.0}),
        *(LayerSpec(EncoderBlock, {**shared, "index": index}) for index in range(context.config.num_layers)),
        LayerSpec(StreamNorm, shared),
        LayerSpec(UnitHead, {**shared, "vocabulary_size": vocabulary_size}),
    ]
