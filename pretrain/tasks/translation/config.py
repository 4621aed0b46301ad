"""This is the [model] section of an encoder-decoder that translates."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from data_pipeline.config import DataConfig
from data_pipeline.translation.config import TranslationConfig
from parallel.config import ParallelConfig
from pretrain.errors import Problem
from pretrain.models.config import NOT_IN_WEIGHTS, BlockConfig, TransformerConfig, VocabularyConfig
from pretrain.models.outline import Outline
from pretrain.models.rules import block_problems, vocabulary_divides
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.translation.sizes import Sides, translation_outline


class TranslatorConfig(BlockConfig, TaskConfig):
    """An encoder of the source and a decoder of the target, of blocks that are alike."""

    kind: Literal["translation"] = "translation"
    """Architecture."""
    encoder_layers: int = Field(gt=0, le=100_000, examples=[6])
    """Blocks of the encoder: self-attention and feed-forward."""
    decoder_layers: int = Field(gt=0, le=100_000, examples=[6])
    """Blocks of the decoder: causal self-attention, cross-attention and feed-forward."""
    source_vocabulary_size: int = Field(gt=0, examples=[8000])
    """Size of the source's vocabulary."""
    target_vocabulary_size: int = Field(gt=0, examples=[8000])
    """Size of the target's vocabulary; with `embeddings = "joint"` both are one."""
    vocabulary_multiple: int = Field(default=128, gt=0)
    """Tables are padded to a multiple of this; padded rows stay zero and are never predicted."""
    embeddings: Literal["joint", "half_shared", "separate"] = "joint"
    """One table for source, target and head; one for the source and one for target and head; or three."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each target's probability that training spreads over the vocabulary (arXiv 1512.00567, section 7); what
    validation reports is without."""

    data_section: ClassVar[type[DataConfig]] = TranslationConfig
    loss_unit: ClassVar[str] = "nats per token"
    targets: ClassVar[str] = "tokens"
    changeable: ClassVar[Mapping[str, Any]] = {**NOT_IN_WEIGHTS, "label_smoothing": True}

    @cached_property
    def encoder(self) -> TransformerConfig:
        """The stack of the source."""
        return self._stack(self.encoder_layers)

    @cached_property
    def decoder(self) -> TransformerConfig:
        """The stack of the target."""
        return self._stack(self.decoder_layers)

    @property
    def source(self) -> VocabularyConfig:
        """The vocabulary of the source, whose table the head uses where all share one."""
        return self._vocabulary(self.source_vocabulary_size, tied=self.embeddings == "joint")

    @property
    def target(self) -> VocabularyConfig:
        """The vocabulary of the target, whose table the head uses unless it has its own."""
        return self._vocabulary(self.target_vocabulary_size, tied=self.embeddings != "separate")

    def outline(self, data: TranslationConfig) -> Outline:
        """It lists embedding, positions, blocks and norm of either side, and the head."""
        sides = Sides(self.encoder, self.decoder, self.source, self.target, joint=self.embeddings == "joint")
        return translation_outline(sides, data.max_source_length, data.max_target_length)

    def problems(self, data: TranslationConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """Blocks and vocabularies must divide over tensor-parallel ranks; a joint table has one vocabulary."""
        yield from block_problems(self.decoder, parallel)
        yield from vocabulary_divides(self.target, parallel.tensor)
        if self.embeddings != "joint":
            yield from vocabulary_divides(self.source, parallel.tensor)
        elif self.source_vocabulary_size != self.target_vocabulary_size:
            yield Problem(
                "model.target_vocabulary_size",
                f'must be source_vocabulary_size = {self.source_vocabulary_size} with embeddings = "joint"',
                f'set it to {self.source_vocabulary_size}, or embeddings = "half_shared"',
                str(self.target_vocabulary_size),
            )

    def data_problems(self, data: DataConfig, manifest: Mapping[str, Any]) -> Iterator[Problem]:
        """The tokenizers of the data must be those that the model is configured for, and no sentence longer than it
        reads. One table for both sides takes one tokenizer for both, else an id has two meanings."""
        yield from super().data_problems(data, manifest)
        if self.embeddings == "joint" and manifest["source_tokenizer"] != manifest["target_tokenizer"]:
            yield Problem(
                "model.embeddings",
                "the data has a tokenizer for each side",
                'set model.embeddings = "half_shared" or "separate", or prepare the data with one tokenizer',
                '"joint"',
            )
        for side, size in (("source", self.source_vocabulary_size), ("target", self.target_vocabulary_size)):
            key, pieces = f"model.{side}_vocabulary_size", manifest[f"{side}_tokenizer"]["vocabulary_size"]
            if pieces != size:
                rule = f"the {side} tokenizer of the data has {pieces} pieces"
                yield Problem(key, rule, f"set {key} = {pieces}", str(size))
            key, longest = f"data.max_{side}_length", manifest[f"longest_{side}"]
            if longest > (length := getattr(data, f"max_{side}_length")):
                rule = f"the data has a {side} of {longest} tokens"
                remedy = f"set {key} = {longest}, or prepare it again with --max-length {length}"
                yield Problem(key, rule, remedy, str(length))

    def shape(self, data: TranslationConfig) -> dict[str, Any]:
        """The lengths count where a table of learned positions is as long."""
        lengths = {"max_source_length": data.max_source_length, "max_target_length": data.max_target_length}
        return {**super().shape(data), **(lengths if self.positions == "learned" else {})}

    def _stack(self, layers: int) -> TransformerConfig:
        shared = {name: getattr(self, name) for name in BlockConfig.model_fields}
        return TransformerConfig.model_validate({**shared, "num_layers": layers})

    def _vocabulary(self, size: int, *, tied: bool) -> VocabularyConfig:
        return VocabularyConfig(
            vocabulary_size=size, vocabulary_multiple=self.vocabulary_multiple, tied_embeddings=tied
        )
