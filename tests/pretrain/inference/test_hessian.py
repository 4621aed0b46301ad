"""The Hessian of a model's loss is that of plain formulas: dense, in float64, on models of less than 2,000 parameters.

B  samples, S  tokens, P  numbers that training moves
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.forecasting_model import forecasting_batches, forecasting_config
from support.speech_model import speech_batches, speech_config
from support.tensors import initial_tensors
from support.training import Layout, make_config, slow
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.series.batch import SeriesBatch
from data_pipeline.text.batch import TokenBatch
from parallel.eigenvalues import Eigenvalue, Search, estimated_trace, largest_eigenvalues, random_normal
from parallel.mesh import ParallelMesh
from parallel.spectral import find_spectral_layers
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.inference.hessian import LossHessian

TOKENS = 29
SIGMA = {"reparametrization": "sigma", "sigma_vectors": 2}


def small(**model: Any) -> RunConfig:
    """One block of hidden size 4, with one row of padding."""
    attention = {"num_heads": 2, **model.pop("attention", {})}
    sizes = {"num_layers": 1, "hidden_size": 4, "vocabulary_size": TOKENS, "vocabulary_multiple": 10}
    return make_config(Layout(), attention=attention, **{**sizes, **model})


def batches() -> list[TokenBatch]:
    """Two that differ in length, and one whose targets are all masked."""
    generator = torch.Generator().manual_seed(3)

    def batch(size: int, length: int, weight: float) -> TokenBatch:
        blocks = torch.randint(0, TOKENS, (size, length + 1), generator=generator)
        weights = weight * (torch.rand(size, length, generator=generator) > 0.2).float()
        return TokenBatch(blocks[:, :-1], blocks[:, 1:], weights)

    return [batch(2, 6, 1.0), batch(3, 4, 1.0), batch(2, 3, 0.0)]


def hessian_of(
    config: RunConfig, mesh: ParallelMesh, dtype: str = "fp64", factor: float = 10.0
) -> LossHessian:
    """Weights are so large that the loss is far from flat."""
    source = initial_tensors(config, mesh, factor=factor)
    return LossHessian(config.model, config.data, dtype, source, mesh, batches())


def largest(hessian: LossHessian, start: Tensor, count: int, tolerance: float = 1e-9) -> Sequence[Eigenvalue]:
    return largest_eigenvalues(hessian, start, Search(count, 2 * count + 20, tolerance, 500))


def cross_entropy(outputs: Tensor, batch: TokenBatch) -> Tensor:
    losses_BS = F.cross_entropy(outputs[..., :TOKENS].transpose(1, 2), batch.targets_BS, reduction="none")
    return (losses_BS * batch.weights_BS).sum()


def squared_error(outputs: Tensor, batch: SeriesBatch) -> Tensor:
    return (F.mse_loss(outputs, batch.y_BDH.double(), reduction="none").mean((1, 2)) * batch.weights_B).sum()


def dense(
    hessian: LossHessian, batches: Sequence[Batch], summed_loss: Callable[[Tensor, Any], Tensor]
) -> Tensor:
    """It returns the Hessian (P, P) of the loss as formulas have it, by torch's own derivatives."""
    layers = hessian.model.layers
    names = [name for name, _ in layers.named_parameters()]
    spectral = find_spectral_layers(layers)
    leaves = leaves_of(hessian)

    def loss(flat_P: Tensor) -> Tensor:
        parts = [
            part.view_as(leaf)
            for part, leaf in zip(flat_P.split([leaf.numel() for leaf in leaves]), leaves, strict=True)
        ]
        weights = dict(zip(names, parts, strict=False))
        for layer, gamma_K in zip(spectral, parts[len(names) :], strict=True):
            name = f"{layer.name}.weight"
            weights[name] = hat(weights[name], gamma_K, *layer.norms.buffers())
        total = flat_P.new_zeros(())
        for batch in batches:
            inputs = [t.double() if t.is_floating_point() else t for t in batch.inputs]
            total = total + summed_loss(torch.func.functional_call(layers, weights, tuple(inputs)), batch)
        return total / sum(batch.target_weight for batch in batches)

    flat_P = torch.cat([leaf.detach().flatten() for leaf in leaves])
    assert len(flat_P) < 2000
    with sdpa_kernel(SDPBackend.MATH):
        found: Tensor = torch.autograd.functional.hessian(loss, flat_P)
    return found


def hat(weight: Tensor, gamma_K: Tensor, basis_KRV: Tensor, sharded_L: Tensor, *_: Tensor) -> Tensor:
    """Column-parallel layers keep u whole and stack matrices; row-parallel ones keep v whole."""
    if len(sharded_L) == weight.shape[1]:
        return gamma_K / (basis_KRV[0, :, 0] @ weight @ sharded_L) * weight
    blocks = zip(weight.chunk(len(gamma_K)), sharded_L.chunk(len(gamma_K)), gamma_K, basis_KRV, strict=True)
    return torch.cat([gamma / (v @ block @ basis[:, 0]) * block for block, v, gamma, basis in blocks])


@pytest.mark.parametrize("model", [slow({}), SIGMA], ids=["plain", "sigma"])
def test_equals_the_dense_one(alone: ParallelMesh, model: dict[str, Any]) -> None:
    hessian = hessian_of(small(**model), alone)
    equals(hessian, dense(hessian, batches(), cross_entropy))
    assert hessian.reparametrised is bool(model)


@pytest.mark.parametrize(
    "model",
    [
        {"num_layers": 1, "head_size": 2},
        {"kind": "tsmixer", "num_layers": 2},
        slow({"num_layers": 2, "head_size": 2, "norm_placement": "pre", **SIGMA}),
        slow({"kind": "temporal", "num_layers": 1, "hidden_size": 4}),
    ],
    ids=str,
)
def test_equals_the_dense_one_of_models_that_forecast(alone: ParallelMesh, model: dict[str, Any]) -> None:
    config = forecasting_config(Layout(accumulation=3), model, lookback=8, horizon=3)
    data = forecasting_batches(config, alone, 1)
    source = initial_tensors(config, alone, factor=2.0)
    hessian = LossHessian(config.model, config.data, "fp64", source, alone, data)
    equals(hessian, dense(hessian, data, squared_error))


def equals(hessian: LossHessian, expected: Tensor) -> None:
    """Its products, largest eigenvalues and trace are those of the dense one."""
    spectrum = torch.linalg.eigvalsh(expected).flip(0)
    generator = torch.Generator().manual_seed(0)
    start = random_normal(hessian.zeros(), generator)
    torch.testing.assert_close(hessian(start), expected @ start, rtol=1e-9, atol=1e-12)
    found = largest(hessian, start, 4)
    assert [one.value for one in found] == pytest.approx(spectrum[:4].tolist(), rel=1e-8)
    assert all(one.residual < 1e-6 * spectrum[0] for one in found)
    trace = estimated_trace(hessian, start, 30, generator)
    assert abs(trace.value - expected.trace().item()) < 3 * trace.standard_error


def test_in_fp32_too(alone: ParallelMesh) -> None:
    exact, rounded = (hessian_of(small(), alone, dtype) for dtype in ("fp64", "fp32"))
    start = random_normal(rounded.zeros(), torch.Generator().manual_seed(0))
    (theirs,) = largest(exact, start.double(), 1)
    (ours,) = largest(rounded, start, 1, tolerance=1e-4)
    assert ours.value == pytest.approx(theirs.value, rel=1e-5)
    assert abs(ours.value - theirs.value) <= ours.residual + 1e-6 * theirs.value
    assert rounded.loss() == pytest.approx(exact.loss(), rel=1e-6)


MODELS: dict[str, dict[str, Any]] = {
    "low rank, sigma": {**SIGMA, "attention": {"kind": "mlra"}},
    "rotary, gated, grouped": {
        "positions": "rotary",
        "hidden_size": 8,
        "normalization": "rms_norm",
        "activation": "swiglu",
        "attention": {"num_key_value_heads": 1},
    },
    "learned, deepnorm, untied": {
        "positions": "learned",
        "norm_placement": "deepnorm",
        "tied_embeddings": False,
    },
    "recomputed": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_no_part_of_a_model_passes_for_a_constant(alone: ParallelMesh, model: dict[str, Any]) -> None:
    """v^T H v is the second difference of the loss along v, for each part that has a backward of its own."""
    hessian = hessian_of(small(**model), alone, factor=5.0)
    leaves = leaves_of(hessian)
    way = random_normal(hessian.zeros(), torch.Generator().manual_seed(1))
    way /= way.norm()
    expected = (way @ hessian(way)).item()
    losses = []
    for step in (0.0, 2e-3, -4e-3):
        with torch.no_grad():
            for leaf, part in zip(leaves, way.split([leaf.numel() for leaf in leaves]), strict=True):
                leaf += step * part.view_as(leaf)
        losses.append(hessian.loss())
    assert (losses[1] - 2 * losses[0] + losses[2]) / 2e-3**2 == pytest.approx(expected, rel=1e-3)


def leaves_of(hessian: LossHessian) -> list[Tensor]:
    """It returns what vectors (P,) are laid out by."""
    spectral = find_spectral_layers(hessian.model.layers)
    return [*hessian.model.layers.parameters(), *(layer.norms.gamma_K for layer in spectral)]


def test_a_loss_without_second_derivative_is_named(alone: ParallelMesh) -> None:
    config = speech_config(Layout())
    source = initial_tensors(config, alone)
    heard = speech_batches(config, alone, 1)
    hessian = LossHessian(config.model, config.data, "fp32", source, alone, heard)
    with pytest.raises(ConfigurationError, match=r"model\.kind speech: its loss has no second derivative"):
        hessian(hessian.zeros())


def test_weights_that_overflow_are_told(alone: ParallelMesh) -> None:
    hessian = hessian_of(small(), alone, "fp32", factor=1e30)
    with pytest.raises(CheckpointError, match="is not finite"):
        hessian(hessian.zeros() + 1)


def test_data_without_targets_is_refused(alone: ParallelMesh) -> None:
    config = small()
    source = initial_tensors(config, alone)
    with pytest.raises(DataError, match="no target"):
        LossHessian(config.model, config.data, "fp32", source, alone, batches()[2:])
