"""Blocks that are left out by chance, and positions that are moved by it."""

import math

import pytest
import torch
from support.distributed import run_distributed
from support.training import Layout, make_config, make_mesh

from parallel.rng import MaskSeed, RandomStreams
from pretrain.models.blocks import TransformerBlock
from pretrain.models.config import CapeConfig
from pretrain.models.context import LayerContext, Materials
from pretrain.models.embeddings import EmbeddingPositions, moved_positions, sinusoidal_table
from pretrain.runtime.kernels import detect_kernels


def context(**model: object) -> LayerContext:
    config = make_config(Layout(), **model)
    mesh = make_mesh(config.parallel)
    streams = RandomStreams(3, mesh)
    return LayerContext(config.model, Materials(mesh, streams, detect_kernels(), seed=3))


def left_out(checkpointing: bool) -> tuple[list[bool], list[bool], list[float]]:
    """Of many passes: whether the block changed nothing; whether it did in evaluation; gradients where it did not."""
    made = context(layer_drop=0.3, activation_checkpointing=checkpointing)
    block, x = TransformerBlock(made, 0), torch.randn(2, 5, 32)
    passes, gradients = [], []
    for step in range(200):
        made.streams.begin_step(step)
        block.zero_grad()
        (y := block(x.requires_grad_())).square().sum().backward()
        passes.append(torch.equal(x, y))
        if passes[-1]:
            assert all(p.grad is not None for p in block.parameters()), "every rank must have a gradient"
            gradients.append(max(float(p.grad.abs().max()) for p in block.parameters() if p.grad is not None))
    return passes, [torch.equal(x, block.eval()(x)) for _ in range(20)], gradients


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_left_out_as_often_as_said(checkpointing: bool) -> None:
    ((passes, evaluated, gradients),) = run_distributed(left_out, 1, checkpointing)
    assert 0.2 < sum(passes) / len(passes) < 0.4
    assert not any(evaluated)
    assert max(gradients) == 0


def test_chances_are_even_and_apart() -> None:
    found = torch.tensor([MaskSeed(seed, tensor_rank=0).chance("layer_drop") for seed in range(4000)])
    assert torch.histc(found, 10, 0, 1).min() > 300
    assert MaskSeed(1, 0).chance("x") == MaskSeed(1, 5).chance("x") != MaskSeed(1, 0).chance("y")


def test_positions_move_as_far_as_said() -> None:
    cape = CapeConfig(global_shift=20.0, local_shift=0.25, global_scale=1.5)
    moved_BS = moved_positions(torch.zeros(4000, 6, 8), cape, seed=5)
    steps = moved_BS.diff(dim=1)
    assert 0.5 / 1.5 <= steps.min() < 0.5
    assert 1.5 < steps.max() <= 1.5 * 1.5
    firsts = moved_BS[:, 0]
    assert -20.25 * 1.5 <= firsts.min() < -20
    assert 20 < firsts.max() <= 20.25 * 1.5
    stretched = steps.mean(dim=1).log() / math.log(1.5)
    assert abs(stretched.mean()) < 0.05  # as often pressed together
    assert torch.equal(moved_BS, moved_positions(torch.zeros(4000, 6, 8), cape, seed=5))


def cape_outputs() -> tuple[bool, bool, bool]:
    made = context(positions="cape", cape={"global_shift": 0.0, "local_shift": 0.0})
    layer, x = EmbeddingPositions(made, 16), torch.randn(2, 16, 32)
    plain = x * 32**0.5 + sinusoidal_table(16, 32, x.device)
    still = torch.allclose(layer(x), plain, atol=1e-5)
    moved = EmbeddingPositions(context(positions="cape"), 16)
    return still, torch.allclose(moved.eval()(x), plain, atol=1e-5), torch.allclose(moved.train()(x), plain)


def test_unmoved_positions_are_sinusoids() -> None:
    """In evaluation they all are, and in training where nothing moves them."""
    ((still, evaluated, trained),) = run_distributed(cape_outputs, 1)
    assert still
    assert evaluated
    assert not trained
