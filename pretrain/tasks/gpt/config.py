"""This is the [model] section of a GPT."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from data_pipeline.config import DataConfig
from data_pipeline.text.config import TextConfig
from parallel.config import ParallelConfig
from pretrain.errors import Problem
from pretrain.models.config import NOT_IN_WEIGHTS, TransformerConfig, VocabularyConfig
from pretrain.models.outline import Outline
from pretrain.models.rules import block_problems, vocabulary_divides
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.gpt.sizes import gpt_outline


class GPTConfig(VocabularyConfig, TransformerConfig, TaskConfig):
    """A decoder-only GPT."""

    kind: Literal["gpt"] = "gpt"
    """Architecture."""

    data_section: ClassVar[type[DataConfig]] = TextConfig
    loss_unit: ClassVar[str] = "nats per token"
    targets: ClassVar[str] = "tokens"
    changeable: ClassVar[Mapping[str, Any]] = NOT_IN_WEIGHTS

    def outline(self, data: TextConfig) -> Outline:
        """It lists embedding, positions, blocks, final norm and head."""
        return gpt_outline(self, self, data.sequence_length)

    def problems(self, data: TextConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """Blocks and vocabulary must divide over tensor-parallel ranks."""
        yield from block_problems(self, parallel)
        yield from vocabulary_divides(self, parallel.tensor)

    def data_problems(self, data: DataConfig, manifest: Mapping[str, Any]) -> Iterator[Problem]:
        """The tokenizer of the data must be the one that the model is configured for."""
        yield from super().data_problems(data, manifest)
        key, pieces = "model.vocabulary_size", manifest["tokenizer"]["vocabulary_size"]
        if pieces != self.vocabulary_size:
            rule = f"the tokenizer of the data has {pieces} pieces"
            yield Problem(key, rule, f"set {key} = {pieces}", str(self.vocabulary_size))

    def shape(self, data: TextConfig) -> dict[str, Any]:
        """The sequence length counts: a table of learned positions is as long as the sequences are."""
        return {**super().shape(data), "sequence_length": data.sequence_length}
