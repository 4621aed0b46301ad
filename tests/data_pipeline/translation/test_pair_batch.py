"""A batch of pairs is what a training step wants to know of it."""

import torch

from data_pipeline.translation.batch import PADDING, PairBatch
from data_pipeline.translation.config import TranslationConfig


def batch() -> PairBatch:
    """Two pairs and a damaged one: sources of 3 and 1 tokens, targets of 2 and 3."""
    return PairBatch(
        source_BS=torch.tensor([[5, 6, 1], [1, 0, 0], [0, 0, 0]]),
        inputs_BT=torch.tensor([[1, 7, 0], [1, 8, 9], [0, 0, 0]]),
        targets_BT=torch.tensor([[7, 1, 0], [8, 9, 1], [0, 0, 0]]),
        weights_BT=torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 0, 0]]),
        damaged=("here",),
    )


def test_padding_is_no_token_and_no_target() -> None:
    assert PADDING == 0
    assert batch().samples == 3
    assert batch().tokens == 4 + 5
    assert batch().target_weight == 5


def test_inputs_and_labels_do_not_need_each_other() -> None:
    pairs = batch()
    assert pairs.inputs == (pairs.source_BS, pairs.inputs_BT)
    assert pairs.labels == (pairs.targets_BT, pairs.weights_BT)


def test_scaled_changes_weights_alone() -> None:
    scaled = batch().scaled(0.5)
    assert scaled.target_weight == 2.5
    assert torch.equal(scaled.targets_BT, batch().targets_BT)
    assert scaled.damaged == ("here",)


def test_a_sample_has_at_most_the_tokens_of_the_longest_pair() -> None:
    data = TranslationConfig.model_validate(
        {
            "sources": [{"path": "data"}],
            "micro_batch_size": 2,
            "global_batch_size": 4,
            "max_source_length": 30,
            "max_target_length": 20,
        }
    )
    assert data.tokens_per_sample == 50
    assert data.bucket_size == 64
