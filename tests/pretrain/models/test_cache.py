"""Decoding with a cache computes what the model computes of the whole sequence at once, in every model.

B  sequences, T  tokens
"""

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from support.tensors import loaded_model
from support.training import SEQUENCE, VOCABULARY, Layout, make_config
from torch import Tensor

from parallel.mesh import ParallelMesh
from pretrain.inference.model import LoadedModel
from pretrain.models.attention import AttentionCore, rotary_rows, rotary_table
from pretrain.models.cache import KeyValueCache, decode

POSITIONS = ("rotary", "learned")
ATTENTION: dict[str, dict[str, Any]] = {"dense": {}, "mlra": {"kind": "mlra", "rank": 12}}
HEADS = (4, 2, 1)
REPARAMETRIZATION = ("none", "sigma")
ACTIVATION = ("gelu", "swiglu")
MODELS = list(product(POSITIONS, ATTENTION, HEADS, REPARAMETRIZATION, ACTIVATION))
PLACEMENTS: tuple[dict[str, Any], ...] = (
    {"norm_placement": "post"},
    {"norm_placement": "none"},
    {"norm_placement": "post", "positions": "sinusoidal"},
    {"normalization": "rms_norm", "bias": False, "tied_embeddings": False},
)
PIECES = {
    "prefill": (20,),
    "single tokens": (1,) * 20,
    "prefill, then single tokens": (11,) + (1,) * 9,
    "pieces of any length": (3, 1, 7, 2, 5, 2),
}


def make_model(alone: ParallelMesh, **model: Any) -> LoadedModel:
    """Initial weights are made larger: with small ones all tokens look alike."""
    return loaded_model(make_config(Layout(), **model), alone, factor=3.0)


def tokens(batch: int = 3) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def whole(model: LoadedModel, tokens_BT: Tensor) -> Tensor:
    outputs = model.layers(tokens_BT)
    assert isinstance(outputs, Tensor)
    return outputs[..., :VOCABULARY]


def in_pieces(model: LoadedModel, tokens_BT: Tensor, pieces: tuple[int, ...]) -> Tensor:
    cache = KeyValueCache(SEQUENCE)
    parts = [
        decode(model.layers.layers, part, cache, part.shape[1])
        for part in tokens_BT.split(list(pieces), dim=1)
    ]
    assert cache.length == tokens_BT.shape[1]
    return torch.cat(parts, dim=1)[..., :VOCABULARY]


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(("positions", "attention", "heads", "reparametrization", "activation"), MODELS)
def test_every_model_computes_the_same_with_a_cache(
    alone: ParallelMesh, positions: str, attention: str, heads: int, reparametrization: str, activation: str
) -> None:
    model = make_model(
        alone,
        positions=positions,
        attention={**ATTENTION[attention], "num_key_value_heads": heads},
        reparametrization=reparametrization,
        activation=activation,
    )
    expected = whole(model, tokens())
    assert expected.std(dim=1).min() > 1e-2, "outputs of different tokens differ"
    assert_equal(in_pieces(model, tokens(), PIECES["prefill, then single tokens"]), expected)


@pytest.mark.parametrize("settings", PLACEMENTS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_norms_anywhere(alone: ParallelMesh, settings: dict[str, Any]) -> None:
    model = make_model(alone, **settings)
    assert_equal(in_pieces(model, tokens(), PIECES["pieces of any length"]), whole(model, tokens()))


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_pieces_of_any_length(alone: ParallelMesh, positions: str, pieces: tuple[int, ...]) -> None:
    model = make_model(alone, positions=positions, attention={"num_key_value_heads": 2})
    assert_equal(in_pieces(model, tokens(), pieces), whole(model, tokens()))


def test_bf16_is_as_close_as_it_can_be(alone: ParallelMesh) -> None:
    """Products of other lengths are rounded otherwise, to 8 bits."""
    model = loaded_model(make_config(Layout(dtype="bf16"), reparametrization="sigma"), alone, factor=3.0)
    expected = whole(model, tokens())
    found = in_pieces(model, tokens(), PIECES["pieces of any length"])
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() <= 2**-5 * expected.abs().max()


def test_sequences_of_a_batch_do_not_meet(alone: ParallelMesh) -> None:
    model = make_model(alone)
    together = in_pieces(model, tokens(), PIECES["pieces of any length"])
    for row, alone_T in enumerate(tokens()):
        assert_equal(in_pieces(model, alone_T[None], PIECES["single tokens"]), together[row : row + 1])


def test_only_the_last_outputs_are_computed(alone: ParallelMesh) -> None:
    model = make_model(alone)
    seen = []
    hook = model.layers.layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    last = decode(model.layers.layers, tokens(), KeyValueCache(SEQUENCE))
    hook.remove()
    assert seen == [(3, 1, 32)]
    assert_equal(last[..., :VOCABULARY], whole(model, tokens())[:, -1:])


def test_a_cache_that_was_cleared_is_as_new(alone: ParallelMesh) -> None:
    model = make_model(alone)
    cache = KeyValueCache(SEQUENCE)
    decode(model.layers.layers, tokens(), cache)
    cache.clear()
    again = decode(model.layers.layers, tokens()[:, 5:9], cache, 4)
    assert_equal(again[..., :VOCABULARY], whole(model, tokens()[:, 5:9]))


def test_a_cache_takes_no_more_than_it_has_room_for(alone: ParallelMesh) -> None:
    model = make_model(alone)
    cache = KeyValueCache(19)
    with pytest.raises(AssertionError, match="20 tokens in a cache of 19"):
        decode(model.layers.layers, tokens(), cache)


def test_queries_are_those_of_the_last_keys() -> None:
    """Every query sees the keys up to its own, with and without a mask of keys."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, 9, 8, generator=generator) for _ in range(3))
    core = AttentionCore(causal=True)
    every = torch.ones(2, 9, dtype=torch.bool)
    expected = core(q, k, v, 0.0)
    for first, stop in pairwise((0, 3, 4, 8, 9)):
        keys, values = k[:, :, :stop], v[:, :, :stop]
        for mask in (None, every[:, :stop]):
            torch.testing.assert_close(
                core(q[:, :, first:stop], keys, values, 0.0, mask), expected[:, :, first:stop]
            )


def test_rows_of_later_positions_are_those_of_the_table() -> None:
    device = torch.device("cpu")
    for start, length in ((0, 7), (1, 1), (3, 4), (63, 1), (64, 1), (100, 30)):
        rows = rotary_rows(start, length, 8, 10_000.0, device)
        for part, table in zip(rows, rotary_table(start + length, 8, 10_000.0, device), strict=True):
            torch.testing.assert_close(part, table[start:])


def test_training_goes_on_after_decoding(alone: ParallelMesh) -> None:
    """What decoding leaves behind, tables of positions among it, can be saved for a backward pass."""
    model = make_model(alone)
    rotary_table.cache_clear()
    decode(model.layers.layers, tokens(), KeyValueCache(SEQUENCE))
    outputs = model.layers(tokens())
    assert isinstance(outputs, Tensor)
    outputs[..., :VOCABULARY].sum().backward()
