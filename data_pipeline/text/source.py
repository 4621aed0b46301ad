"""Text for next-token prediction is one kind of data.

B  samples in a micro-batch
S  tokens in a sequence
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.source import Baseline, Source
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.beside import check_beside
from data_pipeline.text.collate import TokenCollator
from data_pipeline.text.config import TextConfig
from data_pipeline.text.describe import TextDescriber
from data_pipeline.text.manifest import TextManifest
from data_pipeline.text.measure import TextMeasure
from data_pipeline.text.tokenizer import TOKENIZER_FILE, Tokenizer


class TextSource(Source[TextManifest, TextConfig, TokenBatch]):
    """It reads blocks of token ids of one length, made with one tokenizer."""

    manifest_type = TextManifest
    companion_files = (TOKENIZER_FILE,)

    def facts(self, manifest: TextManifest) -> dict[str, Any]:
        """It returns the length of the blocks and the tokenizer's checksum."""
        return {"sequence_length": manifest.sequence_length, "tokenizer": manifest.tokenizer.sha256}

    def check(self, dataset: Dataset[TextManifest], data: TextConfig) -> None:
        """It raises DataError when the blocks have another length, or another tokenizer lies beside them."""
        _check_length(dataset, data)
        check_beside(dataset, dataset.manifest.tokenizer)

    def check_together(self, dataset: Dataset[TextManifest], other_name: str, other: TextManifest) -> None:
        """It raises DataError when two datasets were made with different tokenizers; `check` has seen to the length."""
        mine, its = dataset.manifest.tokenizer, other.tokenizer
        if mine.sha256 != its.sha256:
            raise DataError(
                f"{dataset.name}: made with tokenizer {mine.sha256[:16]}, but {other_name} with {its.sha256[:16]}; "
                "prepare one with the --tokenizer of the other"
            )
        # One collator reads all datasets of a mixture.
        for fact, here, there in (
            ("tokenizer.vocabulary_size", mine.vocabulary_size, its.vocabulary_size),
            ("dtype", dataset.manifest.dtype, other.dtype),
        ):
            if here != there:
                raise DataError(
                    f"{dataset.name}: {fact} is {here}, but {other_name} has {there} with the same tokenizer; "
                    "prepare the data again"
                )

    def collator(self, manifest: TextManifest, data: TextConfig) -> Callable[[Sequence[Sample]], TokenBatch]:
        """It returns what stacks blocks and shifts them by one."""
        return TokenCollator(manifest)

    def describer(self, dataset: Dataset[TextManifest]) -> Callable[[Sample], str]:
        """It returns what decodes a block, with the tokenizer that lies beside the dataset."""
        return TextDescriber(dataset)

    def baseline(self, manifest: TextManifest) -> Baseline | None:
        """It returns the loss of a model that knows how frequent each token is, and nothing else."""
        loss = manifest.unigram_cross_entropy
        return None if loss is None else Baseline("a unigram model", loss)

    def companions(self, dataset: Dataset[TextManifest]) -> dict[str, bytes]:
        """It returns the tokenizer, if it lies beside the dataset; `check` has seen to it that it is the right one."""
        folder, file = dataset.folder.parent(), dataset.manifest.tokenizer.file
        return {TOKENIZER_FILE: folder.read(file)} if folder.has(file) else {}

    def measure(self, companion: Callable[[str], bytes]) -> TextMeasure:
        """It returns what counts bytes and words."""
        return TextMeasure(Tokenizer(companion(TOKENIZER_FILE)))

    def shuffle_targets(self, batch: TokenBatch, row: int, generator: torch.Generator) -> TokenBatch:
        """It returns the batch with the targets of one row permuted."""
        targets_BS = batch.targets_BS.clone()
        targets_BS[row] = targets_BS[row, torch.randperm(targets_BS.shape[1], generator=generator)]
        return replace(batch, targets_BS=targets_BS)

    def randomise(
        self, batch: TokenBatch, manifest: TextManifest, row: int, generator: torch.Generator
    ) -> TokenBatch:
        """It returns the batch with one row that is a block of random ids."""
        tokens_BS, targets_BS = batch.tokens_BS.clone(), batch.targets_BS.clone()
        block_S1 = torch.randint(
            manifest.tokenizer.vocabulary_size, (tokens_BS.shape[1] + 1,), generator=generator
        )
        tokens_BS[row], targets_BS[row] = block_S1[:-1], block_S1[1:]
        return replace(batch, tokens_BS=tokens_BS, targets_BS=targets_BS)


def _check_length(dataset: Dataset[TextManifest], data: TextConfig) -> None:
    """It raises DataError when the blocks have another length than the configuration says."""
    length = dataset.manifest.sequence_length
    if length != data.sequence_length:
        raise DataError(
            f"{dataset.name}: packed for sequences of {length} tokens, but data.sequence_length is "
            f"{data.sequence_length}; set it to {length} or prepare the data again"
        )
