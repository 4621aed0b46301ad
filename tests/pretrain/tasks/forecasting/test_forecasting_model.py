"""Models that forecast equal the formulas, written plainly in float64, forward and backward.

B  windows, D  channels, L  lookback, H  horizon
"""

import math
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.forecasting_model import forecasting_batches, forecasting_config
from support.plain_formulas import attend, feed_forward, linear, norm, sinusoids
from support.training import Layout, companions_of, make_engine, make_mesh, proceed
from torch import Tensor

from data_pipeline.series.scaler import SCALER, parse_scaler
from parallel.mesh import ParallelMesh
from parallel.pipeline import SequentialLayers
from pretrain.config.run import RunConfig
from pretrain.engine.build import model_parts
from pretrain.engine.parts import ModelParts
from pretrain.inference.model import build_layers
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.tasks.forecasting.ends import HorizonHead
from pretrain.tasks.forecasting.forecaster import SeriesForecaster
from pretrain.tasks.forecasting.objective import MeanError

Weights = dict[str, Tensor]
"""By layer's number and name."""
MODELS: dict[str, dict[str, Any]] = {
    "samformer": {"num_layers": 1, "num_heads": 1, "head_size": 16},
    "samformer_deep": {"num_layers": 3, "norm_placement": "pre", "init": "glorot"},
    "samformer_alone": {"instance_norm": False},
    "samformer_without_biases": {"num_layers": 1, "bias": False},
    "temporal": {"kind": "temporal", "num_layers": 2},
    "tsmixer": {"kind": "tsmixer", "num_layers": 3},
    "tsmixer_apart": {"kind": "tsmixer", "num_layers": 2, "share_layers": False},
    "linear": {"kind": "linear"},
    "dlinear": {"kind": "dlinear"},
}


def samformer(config: RunConfig, weights: Weights, x: Tensor, first: int) -> Tensor:
    model, blocks = config.model, config.model.blocks(config.data)
    everywhere = torch.ones(1, 1, 1, x.shape[1], dtype=torch.bool)
    for layer in range(first, first + model.num_layers):
        name = f"{layer}.attention"
        h = norm(blocks, weights, f"{name}_norm", x) if model.norm_placement == "pre" else x
        x = x + attend(blocks, weights, name, h, everywhere)
    last = first + model.num_layers
    x = norm(blocks, weights, f"{last}.norm", x) if model.norm_placement == "pre" else x
    return linear(weights, f"{last + 1}.output", x)


def temporal(config: RunConfig, weights: Weights, x: Tensor, first: int) -> Tensor:
    model = config.model
    x = linear(weights, f"{first}.embedding", x.transpose(1, 2))
    x = x + sinusoids(x.shape[1], x.shape[2])
    everywhere = torch.ones(1, 1, 1, x.shape[1], dtype=torch.bool)
    for layer in range(first + 2, first + 2 + model.num_layers):
        name = f"{layer}.attention"
        x = x + attend(model, weights, name, norm(model, weights, f"{name}_norm", x), everywhere)
        name = f"{layer}.feed_forward"
        x = x + feed_forward(model, weights, name, norm(model, weights, f"{name}_norm", x))
    last = first + 2 + model.num_layers
    x = linear(weights, f"{last + 1}.channels", norm(model, weights, f"{last}.norm", x))
    return linear(weights, f"{last + 1}.output", x.transpose(1, 2))


def whole_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Over channels and times of each window."""
    centred = x - x.mean((1, 2), keepdim=True)
    scaled = centred / (centred.square().mean((1, 2), keepdim=True) + 1e-5).sqrt()
    gain, bias = (weights[f"{name}.{part}"].view(x.shape[1:]) for part in ("weight", "bias"))
    return scaled * gain + bias


def tsmixer(config: RunConfig, weights: Weights, x: Tensor, first: int) -> Tensor:
    shared = config.model.share_layers
    for block in range(config.model.num_layers):
        layer = first if shared else first + block
        x = x + linear(weights, f"{layer}.mix_times", whole_norm(weights, f"{layer}.time_norm", x)).relu()
        gain = "time_norm" if shared else "channel_norm"
        h = whole_norm(weights, f"{layer}.{gain}", x).transpose(1, 2)
        h = linear(weights, f"{layer}.down", linear(weights, f"{layer}.up", h).relu())
        x = x + h.transpose(1, 2)
    return linear(weights, f"{first + (1 if shared else config.model.num_layers)}.output", x)


def dlinear(config: RunConfig, weights: Weights, x: Tensor, first: int) -> Tensor:
    if config.model.kind == "linear":
        return linear(weights, f"{first}.output", x)
    around, length = config.model.moving_average // 2, x.shape[-1]
    columns = [[min(max(t + d, 0), length - 1) for d in range(-around, around + 1)] for t in range(length)]
    average = torch.stack([x[..., own].mean(-1) for own in columns], dim=-1)
    return linear(weights, f"{first}.remainder", x - average) + linear(weights, f"{first}.average", average)


TWINS = {
    "samformer": samformer,
    "temporal": temporal,
    "tsmixer": tsmixer,
    "linear": dlinear,
    "dlinear": dlinear,
}


def forecast(config: RunConfig, weights: Weights, x: Tensor) -> Tensor:
    twin = TWINS[config.model.kind]
    if not getattr(config.model, "instance_norm", False):
        return twin(config, weights, x, 0)
    gain = weights["0.weight"][:, None]
    bias = weights["0.bias"][:, None] if "0.bias" in weights else 0
    mean, deviation = x.mean(-1, keepdim=True), (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    y = twin(config, weights, (x - mean) / deviation * gain + bias, 1)
    return (y - bias) / gain * deviation + mean


def built(name: str) -> tuple[RunConfig, ModelParts, SequentialLayers]:
    config = forecasting_config(Layout(), MODELS[name])
    parts = model_parts(config, make_mesh(config.parallel), detect_kernels(), companions_of(config))
    return config, parts, SequentialLayers(parts.layers)


def outcome(name: str) -> tuple[float, float, list[tuple[str, float]]]:
    """Our loss, the twin's, and per parameter the difference of the gradients, relative to the largest of a layer."""
    config, parts, model = built(name)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    (batch,) = forecasting_batches(config, make_mesh(config.parallel), 1)
    loss = parts.objective(model(*batch.inputs), batch.labels)
    loss.backward()
    weights = {
        n.removeprefix("layers."): p.detach().double().requires_grad_() for n, p in model.named_parameters()
    }
    errors_B = (forecast(config, weights, batch.x_BDL.double()) - batch.y_BDH).square().mean((1, 2))
    expected = (errors_B * batch.weights_B).sum()
    expected.backward()
    scale = max(float(weight.grad.norm()) for weight in weights.values() if weight.grad is not None)
    differences = []
    for n, p in model.named_parameters():
        theirs = weights[n.removeprefix("layers.")].grad
        assert p.grad is not None
        assert theirs is not None
        differences.append((n, ((p.grad - theirs).norm() / (theirs.norm() + 1e-3 * scale)).item()))
    return loss.item(), expected.item(), differences


@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_float64(name: str) -> None:
    ((ours, theirs, gradients),) = run_distributed(outcome, 1, name)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert max(difference for _, difference in gradients) < 1e-4, gradients


PAPER = {"channels": 7, "lookback": 512}


@pytest.mark.parametrize(("horizon", "count"), [(96, 82_590), (192, 131_838), (336, 205_710), (720, 402_702)])
def test_samformer_has_the_parameters_of_the_released_code(horizon: int, count: int) -> None:
    """33,328 + 513 H + 2 D."""
    one = {"num_layers": 1, "num_heads": 1, "head_size": 16}
    config = forecasting_config(Layout(), one, horizon=horizon, **PAPER)
    assert plan(config, 1).parameters.total == count


@pytest.mark.parametrize(
    ("horizon", "count"), [(96, 320_053), (192, 369_301), (336, 443_173), (720, 640_165)]
)
def test_tsmixer_has_the_parameters_of_the_released_code(horizon: int, count: int) -> None:
    """Those that it trains: its batch norm has as many moving means and variances as gains and biases. Blocks of
    their own, each with two norms, have more."""
    shared = {"kind": "tsmixer", "num_layers": 2, "ffn_hidden_size": 64}
    assert plan(forecasting_config(Layout(), shared, horizon=horizon, **PAPER), 1).parameters.total == count
    apart = forecasting_config(Layout(), {**shared, "share_layers": False}, horizon=horizon, **PAPER)
    block = 512 * 513 + 64 * 8 + 7 * 65 + 2 * 2 * 7 * 512
    assert plan(apart, 1).parameters.total == count + block + 2 * 7 * 512


def deviations(init: str) -> dict[str, float]:
    model = {"num_layers": 1, "num_heads": 2, "head_size": 16, "init": init}
    config = forecasting_config(Layout(), model, **PAPER)
    parts = model_parts(config, make_mesh(config.parallel), detect_kernels(), companions_of(config))
    layers = SequentialLayers(parts.layers)
    return {n.removeprefix("layers."): p.std().item() for n, p in layers.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize(
    ("init", "projection", "output"),
    [
        ("glorot", (2 / (512 + 32)) ** 0.5, (2 / (512 + 32)) ** 0.5),
        ("keras", (2 / (512 * 2 + 512 * 16)) ** 0.5, (2 / (2 * 16 + 2 * 512)) ** 0.5),
    ],
)
def test_first_weights(init: str, projection: float, output: float) -> None:
    (found,) = run_distributed(deviations, 1, init)
    assert found["1.attention.qkv.linear.weight"] == pytest.approx(projection, rel=0.02)
    assert found["1.attention.output.weight"] == pytest.approx(output, rel=0.03)
    assert found["3.output.weight"] == pytest.approx((2 / (512 + 8)) ** 0.5, rel=0.05)


def moved(frozen: bool) -> dict[str, float]:
    """How far parameters move in three steps."""
    config = forecasting_config(
        Layout(), {"num_layers": 2, "frozen_attention": frozen, "instance_norm": False}
    )
    optimizer = config.optimizer.model_copy(update={"weight_decay": 0.0})
    config = config.model_copy(update={"optimizer": optimizer})
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    for step in (1, 2, 3):
        engine.step(forecasting_batches(config, mesh, step), proceed, step=step, learning_rate=1e-2)
    return {n: (p - before[n]).abs().max().item() for n, p in engine.module.named_parameters()}


@pytest.mark.parametrize("kind", ["samformer", "temporal", "tsmixer"])
def test_a_head_may_begin_at_zero(kind: str, alone: ParallelMesh) -> None:
    """Forecasts are then the mean of the window, and its weights have a gradient all the same."""
    config = forecasting_config(Layout(), {"kind": kind, "head_init": "zero"})
    layers = build_layers(config.model, config.data, alone, seed=1)
    (batch,) = forecasting_batches(config, alone, 1)
    forecasts_BDH = layers(*batch.inputs)
    means_BD1 = batch.x_BDL.mean(-1, keepdim=True)
    torch.testing.assert_close(forecasts_BDH, means_BD1.expand_as(forecasts_BDH))
    forecasts_BDH.square().mean().backward()
    head = layers.layers[-1]
    assert isinstance(head, HorizonHead)
    assert head.output.weight.grad is not None
    assert head.output.weight.grad.abs().max() > 0


@pytest.mark.parametrize("instance_norm", [True, False])
def test_without_biases_forecasts_of_a_mirrored_series_are_mirrored(
    instance_norm: bool, alone: ParallelMesh
) -> None:
    """So nothing can be learned of which way series drift."""
    model = {"bias": False, "norm_placement": "pre", "instance_norm": instance_norm}
    config = forecasting_config(Layout(), model)
    layers = build_layers(config.model, config.data, alone, seed=1)
    for parameter in layers.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    (batch,) = forecasting_batches(config, alone, 1)
    torch.testing.assert_close(layers(-batch.x_BDL), -layers(batch.x_BDL))


def test_frozen_attention_keeps_its_weights_and_the_head_learns() -> None:
    (frozen,) = run_distributed(moved, 1, True)
    for name, distance in frozen.items():
        assert (distance == 0) == (".attention." in name), name
    (free,) = run_distributed(moved, 1, False)
    assert all(free.values())


def test_errors_are_means_over_windows_that_count() -> None:
    """Two channels with deviations 1 and 3, and a window that is masked: errors 1 and 2, then 3 and 0."""
    outputs = torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]], [[math.nan], [9.0]]])
    labels = (torch.zeros(3, 2, 1), torch.tensor([1.0, 1.0, 0.0]))
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)

    def value(metric: MeanError) -> float:
        return metric.value(metric.sums(outputs, labels).tolist(), 0.0)

    assert value(MeanError("mae", 1)) == pytest.approx((1 + 2 + 3 + 0) / 4)
    assert value(MeanError("mae_original", 1, scale)) == pytest.approx((1 + 6 + 3 + 0) / 4)
    assert value(MeanError("mse_original", 2, scale)) == pytest.approx((1 + 36 + 9 + 0) / 4)


def forecasts_in_bf16() -> tuple[torch.dtype, float]:
    """The dtype of forecasts, and how far a constant far from zero is missed, relative to it."""
    config = forecasting_config(Layout(), {"num_layers": 1})
    parts = model_parts(config, make_mesh(config.parallel), detect_kernels(), companions_of(config))
    model = SequentialLayers(parts.layers).bfloat16()
    x_BDL = 1000 + torch.zeros(2, 3, 24)
    y_BDH = model(x_BDL)
    return y_BDH.dtype, ((y_BDH - 1000).abs().max() / 1000).item()


def test_levels_keep_fp32_in_bf16() -> None:
    ((dtype, missed),) = run_distributed(forecasts_in_bf16, 1)
    assert dtype is torch.float32
    assert missed < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_are_read_in_the_precision_that_a_model_computes_in(dtype: torch.dtype) -> None:
    config = forecasting_config(Layout(), {"kind": "linear"})
    scaler = parse_scaler(companions_of(config)[SCALER])
    outputs = torch.full((1, 3, 8), 1 / 3, dtype=dtype)
    values_HD = SeriesForecaster(config.data, scaler).values(outputs)[0]
    expected = [10 * d + (d + 1) * outputs[0, 0, 0].item() for d in range(3)]
    assert values_HD[0].tolist() == pytest.approx(expected, rel=1e-15)
