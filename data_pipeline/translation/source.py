"""Pairs of sentences, a source and its translation, are one kind of data.

B  samples in a micro-batch
S  tokens in the source
T  tokens in the target
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.source import Baseline, Buckets, Source
from data_pipeline.text.beside import check_beside, tokenizer_beside
from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.translation.batch import PairBatch
from data_pipeline.translation.collate import PairCollator
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.measure import PairMeasure
from data_pipeline.translation.sentences import PADDING, SentenceCodec

SOURCE_TOKENIZER, TARGET_TOKENIZER = "source.model", "target.model"
"""What the tokenizers are called in checkpoints, also where both are the same."""


class TranslationSource(Source[TranslationManifest, TranslationConfig, PairBatch]):
    """It reads pairs of sentences, tokenized alike."""

    manifest_type = TranslationManifest
    companion_files = (SOURCE_TOKENIZER, TARGET_TOKENIZER)

    def facts(self, manifest: TranslationManifest) -> dict[str, Any]:
        """It returns the checksums of the tokenizers."""
        return {
            "source_tokenizer": manifest.source_tokenizer.sha256,
            "target_tokenizer": manifest.target_tokenizer.sha256,
        }

    def check(self, dataset: Dataset[TranslationManifest], data: TranslationConfig) -> None:
        """It raises DataError when a sentence is longer than the configuration says, or another tokenizer lies beside
        the shards."""
        manifest = dataset.manifest
        for key, length, longest in (
            ("max_source_length", data.max_source_length, manifest.longest_source),
            ("max_target_length", data.max_target_length, manifest.longest_target),
        ):
            if longest > length:
                raise DataError(
                    f"{dataset.name}: has a sentence of {longest} tokens, but data.{key} is {length}; set it to "
                    f"{longest}, or prepare the data again with --max-length {length}"
                )
        for entry in manifest.tokenizers:
            check_beside(dataset, entry)

    def check_together(
        self, dataset: Dataset[TranslationManifest], other_name: str, other: TranslationManifest
    ) -> None:
        """It raises DataError when two datasets were made with different tokenizers."""
        mine, its = dataset.manifest, other
        for side, here, there in zip(("source", "target"), mine.tokenizers, its.tokenizers, strict=True):
            if here.sha256 != there.sha256:
                raise DataError(
                    f"{dataset.name}: made with the {side} tokenizer {here.sha256[:16]}, but {other_name} with "
                    f"{there.sha256[:16]}; prepare one with the --tokenizer of the other"
                )
        # One collator reads all datasets of a mixture.
        sizes = [[entry.vocabulary_size for entry in one.tokenizers] for one in (mine, its)]
        if (mine.dtype, sizes[0]) != (its.dtype, sizes[1]):
            raise DataError(
                f"{dataset.name}: has {sizes[0]} ids of type {mine.dtype}, but {other_name} {sizes[1]} of type "
                f"{its.dtype} with the same tokenizers; prepare the data again"
            )

    def collator(
        self, manifest: TranslationManifest, data: TranslationConfig
    ) -> Callable[[Sequence[Sample]], PairBatch]:
        """It returns what pads pairs, and begins targets with the end of text."""
        return PairCollator(manifest)

    def buckets(self, dataset: Dataset[TranslationManifest], data: TranslationConfig) -> Buckets:
        """It returns the lengths of both sides. Raises DataError for those that the manifest says there are not."""
        manifest = dataset.manifest
        lengths_NK = SentenceCodec(manifest.dtype).lengths(dataset.field_sizes())
        longest = [manifest.longest_source, manifest.longest_target]
        if lengths_NK.min() < 1 or (lengths_NK.max(0) > longest).any():
            raise DataError(
                f"{dataset.name}: has sentences of {lengths_NK.min()} to {lengths_NK.max(0).tolist()} tokens, but the "
                f"manifest says of 1 to {longest}; prepare the data again"
            )
        return Buckets(lengths_NK, data.bucket_size)

    def describer(self, dataset: Dataset[TranslationManifest]) -> Callable[[Sample], str]:
        """It returns what decodes both sides, with the tokenizers that lie beside the dataset."""
        tokenizers = [tokenizer_beside(dataset, entry) for entry in dataset.manifest.tokenizers]
        codec = SentenceCodec(dataset.manifest.dtype)

        def describe(sample: Sample) -> str:
            pair = codec.decode(sample.fields)
            return " => ".join(
                tokenizer.decode(ids[:-1].tolist()) for tokenizer, ids in zip(tokenizers, pair, strict=True)
            )

        return describe

    def baseline(self, manifest: TranslationManifest) -> Baseline | None:
        """It returns the loss of a model that knows how frequent each target token is, and nothing else."""
        loss = manifest.unigram_cross_entropy
        return None if loss is None else Baseline("a unigram model", loss)

    def companions(self, dataset: Dataset[TranslationManifest]) -> dict[str, bytes]:
        """It returns the tokenizers, if they lie beside the dataset; `check` has seen to it that they are theirs."""
        folder = dataset.folder.parent()
        named = zip((SOURCE_TOKENIZER, TARGET_TOKENIZER), dataset.manifest.tokenizers, strict=True)
        return {name: folder.read(entry.file) for name, entry in named if folder.has(entry.file)}

    def measure(self, companion: Callable[[str], bytes]) -> PairMeasure:
        """It returns what counts bytes and words of targets."""
        return PairMeasure(Tokenizer(companion(TARGET_TOKENIZER)))

    def shuffle_targets(self, batch: PairBatch, row: int, generator: torch.Generator) -> PairBatch:
        """It returns the batch with the targets of one row permuted, padding left where it is."""
        targets_BT = batch.targets_BT.clone()
        count = int((targets_BT[row] != PADDING).sum())
        targets_BT[row, :count] = targets_BT[row, torch.randperm(count, generator=generator)]
        return replace(batch, targets_BT=targets_BT)

    def randomise(
        self, batch: PairBatch, manifest: TranslationManifest, row: int, generator: torch.Generator
    ) -> PairBatch:
        """It returns the batch with one row of random ids, as long as those that it had."""
        source_BS, inputs_BT, targets_BT = (
            ids.clone() for ids in (batch.source_BS, batch.inputs_BT, batch.targets_BT)
        )
        for ids, entry in zip((source_BS[row], targets_BT[row]), manifest.tokenizers, strict=True):
            real = ids != PADDING
            ids[real] = torch.randint(1, entry.vocabulary_size, (int(real.sum()),), generator=generator)
        count = int((inputs_BT[row] != PADDING).sum())
        inputs_BT[row, 1:count] = targets_BT[row, : max(count - 1, 0)]
        return replace(batch, source_BS=source_BS, inputs_BT=inputs_BT, targets_BT=targets_BT)
