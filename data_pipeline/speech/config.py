"""These are the keys of `[data]` for a run that reads recorded speech and what was said."""

from itertools import count
from math import ceil
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from data_pipeline.config import DataConfig
from data_pipeline.speech.mel import most_mel_bins

Factor = Annotated[float, Field(ge=0.5, le=2.0)]


def most_units(samples: int, sample_rate: int, frame_seconds: float) -> int:
    """It counts the whole frames of `frame_seconds` in so many samples: as many units, with blanks between equal ones,
    an utterance has at most."""
    return samples // frame_samples(sample_rate, frame_seconds)


def frame_samples(sample_rate: int, frame_seconds: float) -> int:
    """It counts the samples that an utterance has for each of its units, at least."""
    return max(round(frame_seconds * sample_rate), 1)


def rounded_up(seconds: float) -> str:
    """It writes a length such that audio of it is no longer than what is written."""
    return f"{ceil(seconds * 100) / 100:.2f}"


LONGEST_SECONDS = 86_400
"""Of audio that anything reads at once: a day."""


class AugmentationConfig(BaseModel):
    """How training samples are altered by chance; validation hears them as they are.

    What becomes of a sample follows from the seed and its place in the data order alone, in every layout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    speeds: tuple[Factor, ...] = Field(default=(1.0,), min_length=1, max_length=100)
    """Speed perturbation (Ko et al. 2015): each sample is played at one of these speeds, as [0.9, 1.0, 1.1]."""
    frequency_warp: tuple[Factor, Factor] = (1.0, 1.0)
    """Vocal tract length perturbation (Jaitly & Hinton 2013): frequencies of each sample are scaled by a factor of this
    range, as [0.9, 1.1]; its tempo stays."""
    frequency_masks: int = Field(default=0, ge=0, le=100)
    """SpecAugment (arXiv 1904.08779): bands of mel bins that are masked."""
    frequency_width: int = Field(default=27, ge=0)
    """Mel bins of the widest band."""
    time_masks: int = Field(default=0, ge=0, le=1000)
    """SpecAugment: spans of frames that are masked."""
    time_width: int = Field(default=100, ge=0)
    """Frames of the longest span."""
    time_share: float = Field(default=0.15, ge=0, le=1)
    """Most of an utterance that one span masks (arXiv 1912.05533: masks adapt to its length)."""

    @field_validator("frequency_warp")
    @classmethod
    def _rises(cls, warp: tuple[float, float]) -> tuple[float, float]:
        if warp[0] > warp[1]:
            raise PydanticCustomError(
                "not_a_range",
                "must go from the least factor to the greatest, as [{least}, {greatest}]",
                {"least": f"{warp[1]:g}", "greatest": f"{warp[0]:g}"},
            )
        return warp


class SpeechConfig(DataConfig):
    """Sources, what is computed of the audio, and batch sizes; the order follows from sources, bucket size and seed."""

    kind: Literal["speech"] = Field(default="speech", repr=False)
    sample_rate: int = Field(default=16_000, ge=1_000, le=768_000)
    """Samples a second of the prepared audio."""
    max_seconds: float = Field(gt=0, le=LONGEST_SECONDS, examples=[20.0])
    """Seconds of the longest utterance; longer ones in the shards are refused."""
    window_seconds: float = Field(default=0.025, gt=0, le=1)
    """Audio that a frame is computed from, 2 samples at least."""
    mel_bins: int = Field(default=80, ge=4, le=1024)
    """Mel filters: numbers in a frame. The longer a window, the more of them it can tell apart."""
    hop_seconds: float = Field(default=0.01, gt=0, le=1)
    """Time from a frame to the next, 1 sample at least."""
    augmentation: AugmentationConfig = AugmentationConfig()
    bucket_size: int = Field(default=64, gt=0)
    """Utterances of like lengths that come one after another; micro_batch_size or a multiple of it pads least. The
    order follows from it, so it stays what it is for the whole run."""

    ragged: ClassVar[bool] = True

    @field_validator("window_seconds", "hop_seconds")
    @classmethod
    def _has_samples(cls, seconds: float, info: ValidationInfo) -> float:
        least = 2 if info.field_name == "window_seconds" else 1
        rate = info.data.get("sample_rate")
        if rate and round(seconds * rate) < least:
            raise PydanticCustomError(
                "too_few_samples",
                "must be at least {seconds} at {rate} Hz: {least} samples of audio",
                {"least": least, "seconds": f"{least / rate:g}", "rate": rate},
            )
        return seconds

    @field_validator("mel_bins")
    @classmethod
    def _are_told_apart(cls, mel_bins: int, info: ValidationInfo) -> int:
        if not {"sample_rate", "window_seconds"} <= info.data.keys():
            return mel_bins
        window = round(info.data["window_seconds"] * info.data["sample_rate"])
        if (most := most_mel_bins(info.data["sample_rate"], window, mel_bins)) < mel_bins:
            raise PydanticCustomError(
                "too_many_mel_bins",
                "must be at most {most} with a window of {window} samples, for each filter to have a frequency of its "
                "transform in it; or make data.window_seconds longer",
                {"most": most, "window": window},
            )
        return mel_bins

    @property
    def window(self) -> int:
        """It counts the samples that a frame is computed from."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def hop(self) -> int:
        """It counts the samples from a frame to the next."""
        return round(self.hop_seconds * self.sample_rate)

    def frames(self, samples: int) -> int:
        """It counts the frames of so many samples of audio: those whose window lies within it, and one at least."""
        return max(1 + (samples - self.window) // self.hop, 1)

    @property
    def max_frames(self) -> int:
        """It counts the frames of the longest utterance at its slowest."""
        return self.frames(ceil(self.max_seconds * self.sample_rate / min(1.0, *self.augmentation.speeds)))

    @property
    def tokens_per_sample(self) -> int:
        """It is what the longest utterance has: how long they are on average is known when the data is open."""
        return self.max_frames

    def aligns(self, stride: int, frame_seconds: float, longest_seconds: float) -> bool:
        """It tells whether a model with an output for every `stride` frames has, for each utterance, as many outputs as
        that has units and blanks between equal ones, however fast it is played.

        `frame_seconds` and `longest_seconds` are what a manifest says. The shortest utterance of each number of units
        is looked at: more audio has no fewer outputs. A model whose outputs come less often than every `frame_seconds`
        of the fastest audio falls short sooner or later; one with a stride below the hops in a window may as well, for
        a window must lie within the audio, so that the last hops have no frame of their own.
        """
        step, fastest = frame_samples(self.sample_rate, frame_seconds), max(1.0, *self.augmentation.speeds)
        most = most_units(round(longest_seconds * self.sample_rate), self.sample_rate, frame_seconds)
        return all(
            -(-self.frames(int(units * step / fastest)) // stride) >= units for units in range(1, most + 1)
        )

    def frame_seconds_for(self, stride: int, longest_seconds: float) -> float:
        """It returns what data would have to be prepared with, within 5 %, for a model with an output for every
        `stride` frames."""
        output = stride * self.hop / self.sample_rate * max(1.0, *self.augmentation.speeds)
        longer = (output * (1 + steps / 20) for steps in count())
        return next(seconds for seconds in longer if self.aligns(stride, seconds, longest_seconds))
