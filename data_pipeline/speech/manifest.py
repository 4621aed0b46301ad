"""A folder of shards with utterances says in its manifest how long they are, and what their transcripts are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.parsing import Digest
from data_pipeline.shards.manifest import Count, Manifest

Seconds = Annotated[float, Field(gt=0, le=2**40, allow_inf_nan=False)]


class UnitsEntry(BaseModel):
    """It describes the units of transcripts, whose file lies beside the splits."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: Literal["units.json", "units.model"]
    """Characters, or pieces of sentencepiece."""
    sha256: Digest
    count: Annotated[int, Field(gt=1, le=1 << 16)]
    """Ids, that of the blank (0) included."""


class LengthsEntry(BaseModel):
    """It describes the file in the folder of a split that says how long each utterance is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: Literal["lengths.npy"] = "lengths.npy"
    bytes: Count
    sha256: Digest


class SpeechManifest(Manifest):
    """It describes utterances: audio without loss, mono, at one rate, and the units of what was said."""

    kind: Literal["speech"] = "speech"
    sample_rate: Annotated[int, Field(ge=1_000, le=768_000)]
    """Samples a second of all audio."""
    seconds: Seconds
    """Of all audio together."""
    longest_seconds: Seconds
    """Of the longest utterance."""
    frame_seconds: Seconds
    """Every utterance has as many units, and blanks between equal ones, as there are whole frames of so many seconds
    in it (`most_units` of config.py), at most; `SpeechConfig.aligns` tells whether a model has as many outputs."""
    unit_total: Count
    """Units of all transcripts together."""
    units: UnitsEntry
    lengths: LengthsEntry
    """int32 (samples, 2): samples of audio and units of each utterance."""
