"""A folder of text shards says in its manifest how it was packed, and with which tokenizer."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.shards.manifest import Manifest


class TokenizerEntry(BaseModel):
    """It names the tokenizer that the shards were made with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """In the folder above the manifest's."""
    sha256: str
    vocabulary_size: int = Field(gt=0)


class TextManifest(Manifest):
    """It describes token blocks for next-token prediction."""

    kind: Literal["text"] = "text"
    sequence_length: int = Field(gt=0)
    """Targets in a sample; the sample holds one token more."""
    tokens: int = Field(gt=0)
    """Targets in all samples."""
    dtype: Literal["uint16", "uint32"]
    """Type of the stored ids, little-endian."""
    tokenizer: TokenizerEntry
    unigram_cross_entropy: float | None = None
    """Nats per target of a validation split under the train split's token frequencies (add-one smoothing)."""
