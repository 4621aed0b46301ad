"""A folder of text shards says in its manifest how it was packed, and with which tokenizer."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.parsing import Digest
from data_pipeline.shards.manifest import Count, Manifest


class TokenizerEntry(BaseModel):
    """It names the tokenizer that the shards were made with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$")
    """In the folder above the manifest's."""
    sha256: Digest
    vocabulary_size: int = Field(gt=0, le=2**32)


class TextManifest(Manifest):
    """It describes token blocks for next-token prediction."""

    kind: Literal["text"] = "text"
    sequence_length: Count
    """Targets in a sample; the sample holds one token more."""
    tokens: Count
    """Targets in all samples."""
    dtype: Literal["uint16", "uint32"]
    """Type of the stored ids, little-endian."""
    tokenizer: TokenizerEntry
    unigram_cross_entropy: float | None = Field(default=None, allow_inf_nan=False)
    """Nats per target of a validation split under the train split's token frequencies (add-one smoothing)."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        """It refuses blocks that the shards have no room for: memory would be taken for them."""
        ids = self.samples * (self.sequence_length + 1)
        if ids * (2 if self.dtype == "uint16" else 4) > (size := sum(shard.bytes for shard in self.shards)):
            raise ValueError(
                f"{self.samples} samples of {self.sequence_length} + 1 ids do not fit in {size} bytes"
            )
        return self

    @model_validator(mode="after")
    def _ids_fit(self) -> Self:
        """It refuses a type of ids that does not hold the whole vocabulary: ids above its range have wrapped."""
        if self.dtype == "uint16" and self.tokenizer.vocabulary_size > 1 << 16:
            raise ValueError(f"dtype uint16 does not hold {self.tokenizer.vocabulary_size} ids")
        return self
