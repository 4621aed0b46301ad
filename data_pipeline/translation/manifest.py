"""A folder of shards with pairs of sentences says in its manifest how long they are, and how they were tokenized."""

from typing import Literal, Self

from pydantic import Field, model_validator

from data_pipeline.shards.manifest import Count, Manifest
from data_pipeline.text.manifest import TokenizerEntry


class TranslationManifest(Manifest):
    """It describes pairs of sentences."""

    kind: Literal["translation"] = "translation"
    source_tokens: Count
    """Tokens in all sources, an end of text for each included."""
    target_tokens: Count
    longest_source: Count
    """Tokens of the longest source, its end of text included."""
    longest_target: Count
    dtype: Literal["uint16", "uint32"]
    """Type of the stored ids of both sides, little-endian."""
    source_tokenizer: TokenizerEntry
    target_tokenizer: TokenizerEntry
    """The same where both sides have one vocabulary."""
    unigram_cross_entropy: float | None = Field(default=None, allow_inf_nan=False)
    """Nats per target of a validation split under the train split's token frequencies (add-one smoothing)."""

    @property
    def tokenizers(self) -> tuple[TokenizerEntry, TokenizerEntry]:
        """They are those of source and target."""
        return self.source_tokenizer, self.target_tokenizer

    @model_validator(mode="after")
    def _ids_fit(self) -> Self:
        """It refuses a type of ids that does not hold both vocabularies: ids above its range have wrapped."""
        largest = max(entry.vocabulary_size for entry in self.tokenizers)
        if self.dtype == "uint16" and largest > 1 << 16:
            raise ValueError(f"dtype uint16 does not hold {largest} ids")
        return self
