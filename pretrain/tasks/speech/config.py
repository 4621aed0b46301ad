"""This is the [model] section of an encoder that transcribes speech."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field

from data_pipeline.config import DataConfig
from data_pipeline.speech.config import SpeechConfig, rounded_up
from parallel.config import ParallelConfig
from pretrain.errors import Problem
from pretrain.models.config import NOT_IN_WEIGHTS, TransformerConfig
from pretrain.models.outline import Outline
from pretrain.models.rules import block_problems
from pretrain.section import Section
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.speech.sizes import speech_outline

Frames = TypeVar("Frames")
"""A number of frames, or a tensor of such numbers."""


def output_frames(frames: Frames, stride: int) -> Frames:
    """It counts the outputs of a model for so many frames of features: one for each `stride`, and for what is left."""
    return -(-frames // stride)  # type: ignore[operator]


class SubsamplingConfig(Section):
    """A convolution over time makes the stream of the frames, and fewer of them."""

    kernel: int = Field(default=7, gt=0, le=1023)
    """Frames that an output is computed from, an odd number."""
    stride: int = Field(default=3, gt=0, le=64)
    """Frames from an output to the next."""


class SpeechModelConfig(TransformerConfig, TaskConfig):
    """Convolutional subsampling, Transformer blocks, and a head over the units: trained by CTC."""

    kind: Literal["speech"] = "speech"
    """Architecture."""
    vocabulary_size: int = Field(gt=1, le=1 << 16, examples=[29])
    """Units that the model tells apart, the blank included: `surefoot prepare` says how many the data has."""
    subsampling: SubsamplingConfig = SubsamplingConfig()

    data_section: ClassVar[type[DataConfig]] = SpeechConfig
    loss_unit: ClassVar[str] = "nats per unit"
    targets: ClassVar[str] = "units"
    changeable: ClassVar[Mapping[str, Any]] = NOT_IN_WEIGHTS

    def outline(self, data: SpeechConfig) -> Outline:
        """It lists subsampling, positions, blocks, norm and head."""
        kernel, outputs = self.subsampling.kernel, output_frames(data.max_frames, self.subsampling.stride)
        return speech_outline(self, self.vocabulary_size, data.mel_bins, kernel, outputs)

    def problems(self, data: SpeechConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """Blocks must divide over tensor-parallel ranks, and the convolution needs a frame in its middle."""
        yield from block_problems(self, parallel)
        if not (kernel := self.subsampling.kernel) % 2:
            rule, remedy = "must be odd, to lie evenly around a frame", f"for example {kernel + 1}"
            yield Problem("model.subsampling.kernel", rule, remedy, str(kernel))

    def data_problems(self, data: DataConfig, manifest: Mapping[str, Any]) -> Iterator[Problem]:
        """The units of the data must be as many as those of the model, no utterance longer than it hears, and its
        outputs frequent enough for every transcript."""
        assert isinstance(data, SpeechConfig)
        yield from super().data_problems(data, manifest)
        if (units := manifest["units"]["count"]) != self.vocabulary_size:
            rule = f"the data has {units} units, the blank included"
            yield Problem(
                "model.vocabulary_size",
                rule,
                f"set model.vocabulary_size = {units}",
                str(self.vocabulary_size),
            )
        if (longest := manifest["longest_seconds"]) > data.max_seconds:
            rule = f"the data has an utterance of {rounded_up(longest)} seconds"
            remedy = f"set data.max_seconds = {rounded_up(longest)}"
            yield Problem("data.max_seconds", rule, remedy, f"{data.max_seconds:g}")
        period, stride = manifest["frame_seconds"], self.subsampling.stride
        if not data.aligns(stride, period, longest):
            output = stride * data.hop / data.sample_rate * max(1.0, *data.augmentation.speeds)
            gives = f"gives an output every {output:g} seconds of the fastest audio"
            if output <= period:
                gives += " and none for the last hops of a window"
            yield Problem(
                "model.subsampling.stride",
                f"{gives}, and the data was made for models with one every {period:g}: transcripts may have more units "
                "than there are outputs",
                "take a smaller stride, or prepare the data again with --frame-seconds "
                f"{data.frame_seconds_for(stride, longest):g}",
                str(stride),
            )

    def shape(self, data: SpeechConfig) -> dict[str, Any]:
        """The mel bins count, and the longest utterance where a table of learned positions is as long."""
        length = {"max_seconds": data.max_seconds} if self.positions == "learned" else {}
        return {**super().shape(data), "mel_bins": data.mel_bins, **length}
