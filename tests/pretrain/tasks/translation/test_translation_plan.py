"""Plans of encoder-decoders: stages by cost, and sizes worked out by hand."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.training import Layout
from support.translation import SOURCE, SOURCE_LENGTH, TARGET_LENGTH, translation_config

from pretrain.config.loader import load_config
from pretrain.plan.plan import plan

CONFIGS = Path(__file__).parents[4] / "configs" / "translation"
S, T, D = SOURCE_LENGTH, TARGET_LENGTH, 32


def test_flops_and_activations_of_a_decoder_block_by_hand() -> None:
    """Keys and values of cross-attention are made of S states, all else of T tokens. Numbers that are kept: the inputs
    of three norms and three branches, and over tensor ranks two queries and outputs, keys and values of T tokens and of
    S states, GELU in and out."""
    config = translation_config(Layout(), {"bias": False})
    (block,) = (layer for layer in config.model.outline(config.data).layers if layer.name == "decoder_01")
    own = 4 * D * D + 2 * D * D + 8 * D * D
    assert block.flops == 6 * own * T + 6 * 2 * D * D * S + 12 * D * T * (T + S)
    assert block.activations.whole == 6 * T * D
    assert block.activations.sharded == (2 + 2 + 2 + 8) * T * D + 2 * S * D


@pytest.mark.parametrize(("stages", "blocks"), [(2, [7, 5]), (3, [5, 4, 3]), (12, [1] * 12)])
def test_stages_share_the_cost(stages: int, blocks: list[int]) -> None:
    """A block of the decoder costs about 4/3 of one of the encoder, by its cross-attention."""
    config = load_config(CONFIGS / "wmt-6-6.toml")
    outline = config.model.outline(config.data)
    boundaries = pairwise(outline.partition(stages))
    assert [sum(layer.is_block for layer in outline.layers[a:b]) for a, b in boundaries] == blocks


def test_the_big_transformer_is_as_large_as_it_was() -> None:
    """Of its 213 M parameters (Vaswani et al. 2017, arXiv 1706.03762, table 3) 5 M are rows of a larger vocabulary."""
    assert plan(load_config(CONFIGS / "wmt-6-6.toml"), 8).parameters.total == pytest.approx(209e6, rel=0.01)


@pytest.mark.parametrize(
    ("model", "tensor", "key"),
    [
        ({"target_vocabulary_size": 91}, 1, "model.target_vocabulary_size"),
        ({"vocabulary_multiple": 3}, 4, "model.vocabulary_multiple"),
        ({"attention": {"num_heads": 4}}, 3, "model.attention.num_heads"),
    ],
)
def test_what_cannot_work_is_told_by_its_key(model: dict[str, Any], tensor: int, key: str) -> None:
    config = translation_config(Layout(tensor=tensor), model)
    assert key in [problem.key for problem in config.model.problems(config.data, config.parallel)]


def facts(**changes: Any) -> dict[str, Any]:
    """What a manifest says of data that fits the model, or not."""
    tokenizer = {"file": "tokenizer.model", "sha256": "ab", "vocabulary_size": SOURCE}
    lengths = {"longest_source": SOURCE_LENGTH, "longest_target": TARGET_LENGTH}
    return {"source_tokenizer": tokenizer, "target_tokenizer": tokenizer, **lengths, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"source_tokenizer": {"vocabulary_size": 8}, "target_tokenizer": {"vocabulary_size": 8}},
            [
                "model.source_vocabulary_size = 90: the source tokenizer of the data has 8 pieces; "
                "set model.source_vocabulary_size = 8",
                "model.target_vocabulary_size = 90: the target tokenizer of the data has 8 pieces; "
                "set model.target_vocabulary_size = 8",
            ],
        ),
        (
            {"target_tokenizer": {"file": "target.model", "sha256": "cd", "vocabulary_size": SOURCE}},
            [
                'model.embeddings = "joint": the data has a tokenizer for each side; set model.embeddings = '
                '"half_shared" or "separate", or prepare the data with one tokenizer'
            ],
        ),
        (
            {"longest_target": 18},
            [
                "data.max_target_length = 17: the data has a target of 18 tokens; set data.max_target_length = 18, or "
                "prepare it again with --max-length 17"
            ],
        ),
        ({}, []),
    ],
)
def test_data_must_be_what_the_model_is_made_for(changes: dict[str, Any], told: list[str]) -> None:
    config = translation_config(Layout())
    assert [str(problem) for problem in config.model.data_problems(config.data, facts(**changes))] == told


def test_two_tokenizers_take_two_tables() -> None:
    config = translation_config(Layout(), {"embeddings": "half_shared"})
    two = facts(target_tokenizer={"file": "target.model", "sha256": "cd", "vocabulary_size": SOURCE})
    assert list(config.model.data_problems(config.data, two)) == []


def test_lengths_bind_a_checkpoint_where_positions_are_learned() -> None:
    rotary, learned = (translation_config(Layout(), {"positions": kind}) for kind in ("rotary", "learned"))
    assert "max_source_length" not in rotary.model.shape(rotary.data)
    assert learned.model.shape(learned.data)["max_target_length"] == T
    assert "label_smoothing" not in rotary.model.shape(rotary.data)
