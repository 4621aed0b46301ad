"""An encoder-decoder equals the formulas, written plainly in float64, forward and backward.

B  samples, S  tokens of the source, T  tokens of the target, D  hidden size
"""

from functools import partial
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.plain_formulas import attend, feed_forward, norm, sinusoids
from support.training import Layout, make_mesh
from support.translation import TARGET, translation_batches, translation_config
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.translation.batch import PADDING, PairBatch
from parallel.pipeline import SequentialLayers
from pretrain.engine.build import model_parts
from pretrain.models.depth import Depth, decoder_of, encoder_of, single_stack
from pretrain.runtime.kernels import detect_kernels
from pretrain.tasks.translation.config import TranslatorConfig

ENCODER, DECODER = 3, 2
MODELS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post_half_shared": {
        "norm_placement": "post",
        "embeddings": "half_shared",
        "target_vocabulary_size": TARGET,
    },
    "none_separate": {"norm_placement": "none", "embeddings": "separate", "label_smoothing": 0.0},
    "deepnorm_sinusoidal": {"norm_placement": "deepnorm", "positions": "sinusoidal"},
    "deepnorm_mlra": {
        "norm_placement": "deepnorm",
        "normalization": "rms_norm",
        "activation": "swiglu",
        "bias": False,
        "positions": "learned",
        "attention": {"kind": "mlra", "rank": 6, "num_key_value_heads": 2},
    },
}
ALPHA = {"encoder": 0.81 * (ENCODER**4 * DECODER) ** (1 / 16), "decoder": (3 * DECODER) ** (1 / 4)}
BETA = {"encoder": 0.87 * (ENCODER**4 * DECODER) ** (-1 / 16), "decoder": (12 * DECODER) ** (-1 / 4)}


def make(name: str, **model: Any) -> Any:
    layers = {"encoder_layers": ENCODER, "decoder_layers": DECODER}
    return translation_config(Layout(), {**layers, **MODELS[name], **model})


def positioned(model: TranslatorConfig, weights: dict[str, Tensor], name: str, x_BSD: Tensor) -> Tensor:
    _, length, size = x_BSD.shape
    if model.positions == "learned":
        return x_BSD + weights[f"{name}.positions_SD"][:length]
    if model.positions == "rotary":
        return x_BSD
    return size**0.5 * x_BSD + sinusoids(length, size)


def add(model: TranslatorConfig, weights: dict[str, Tensor], name: str, x: Tensor, branch: Any) -> Tensor:
    """The stream after the branch `name`, whose norm is called like it."""
    layer = int(name.split(".")[1])
    f = partial(branch, model, weights, name)
    normed = partial(norm, model, weights, name.replace("cross_attention", "cross") + "_norm")
    match model.norm_placement:
        case "pre":
            return x + f(normed(x))
        case "post":
            return normed(x + f(x))
        case "deepnorm":
            return normed(ALPHA["encoder" if layer < 2 + ENCODER else "decoder"] * x + f(x))
    return x + f(x)


def reference(model: TranslatorConfig, weights: dict[str, Tensor], batch: PairBatch) -> Tensor:
    """Logits over the real vocabulary."""
    second, last = ENCODER + 3, ENCODER + DECODER + 6
    target, head = {"joint": (0, 0), "half_shared": (second, second), "separate": (second, last)}[
        model.embeddings
    ]
    pre = model.norm_placement == "pre"
    x = positioned(model, weights, "layers.1", weights["layers.0.weight"][batch.source_BS])
    real = (batch.source_BS != PADDING)[:, None, None]
    real = real | ~real.any(-1, keepdim=True)
    for layer in range(2, 2 + ENCODER):
        x = add(model, weights, f"layers.{layer}.attention", x, partial(attend, seen=real))
        x = add(model, weights, f"layers.{layer}.feed_forward", x, feed_forward)
    states = norm(model, weights, f"layers.{second - 1}.norm", x) if pre else x
    y = positioned(
        model, weights, f"layers.{second + 1}", weights[f"layers.{target}.weight"][batch.inputs_BT]
    )
    past = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).tril()
    asking = partial(attend, seen=real, states_BSD=states)
    for layer in range(second + 2, second + 2 + DECODER):
        y = add(model, weights, f"layers.{layer}.attention", y, partial(attend, seen=past))
        y = add(model, weights, f"layers.{layer}.cross_attention", y, asking)
        y = add(model, weights, f"layers.{layer}.feed_forward", y, feed_forward)
    y = norm(model, weights, f"layers.{last - 1}.norm", y) if pre else y
    return (y @ weights[f"layers.{head}.weight"].T)[..., : model.target_vocabulary_size]


def build(name: str, **model: Any) -> tuple[Any, Any, SequentialLayers]:
    config = make(name, **model)
    mesh = make_mesh(config.parallel)
    parts = model_parts(config, mesh, detect_kernels())
    return config, parts, SequentialLayers(parts.layers)


def outcome(name: str) -> tuple[list[float], list[float], list[tuple[str, float]]]:
    """Our loss and that of validation, the reference's, and per parameter the relative difference of the gradients."""
    config, parts, model = build(name)
    generator = torch.Generator().manual_seed(1)
    real = {0: config.model.source_vocabulary_size}
    for n, parameter in model.named_parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        if parameter.shape[0] == 128 and n.endswith(".weight") and n.count(".") == 2:
            parameter.data[real.get(int(n.split(".")[1]), config.model.target_vocabulary_size) :] = 0
    (batch,) = translation_batches(config, make_mesh(config.parallel), 1)
    outputs = model(*batch.inputs)
    loss, validated = parts.objective(outputs, batch.labels), parts.validation_loss(outputs, batch.labels)
    loss.backward()
    weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    logits_BVT = reference(config.model, weights, batch).transpose(1, 2)
    nll, smoothed = (
        (
            F.cross_entropy(logits_BVT, batch.targets_BT, reduction="none", label_smoothing=share)
            * batch.weights_BT
        ).sum()
        for share in (0.0, config.model.label_smoothing)
    )
    smoothed.backward()
    differences = []
    for n, p in model.named_parameters():
        ours, theirs = p.grad, weights[n].grad
        assert ours is not None
        assert theirs is not None
        differences.append((n, ((ours - theirs).norm() / theirs.norm()).item()))
    return [loss.item(), validated.item()], [smoothed.item(), nll.item()], differences


@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_float64(name: str) -> None:
    ((ours, theirs, gradients),) = run_distributed(outcome, 1, name)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert (ours[0] == ours[1]) == (name == "none_separate")
    # The softmax does not see a constant added to all keys, so without rotation the key bias has no gradient.
    assert max(difference for _, difference in gradients) < 1e-5, gradients


def initial_stds(placement: str) -> dict[str, float]:
    """Of the matrices of the first block of either side, by name; queries, keys and values one by one."""
    _, _, model = build("pre", hidden_size=128, norm_placement=placement)
    found = {}
    for side, layer in (("encoder", 2), ("decoder", ENCODER + 5)):
        for name, weight in model.layers[layer].named_parameters():
            if weight.dim() == 2:
                for number, part in enumerate(
                    weight.detach().split(128) if "attention" in name else (weight,)
                ):
                    found[f"{side}/{name.removesuffix('.weight')}/{number}"] = part.std().item()
    return found


def test_initial_weights_of_deepnorm() -> None:
    """Xavier's rule, times beta for values, attention outputs and feed-forward."""
    (found,) = run_distributed(initial_stds, 1, "deepnorm")
    asking = ("qkv.linear/0", "qkv.linear/1", "query.linear/0", "key_value.linear/0")
    assert len(found) == (4 + 2) + (4 + 4 + 2)
    for name, std in found.items():
        columns = 128 + (512 if "feed_forward" in name else 128)
        gain = 1.0 if name.endswith(asking) else BETA[name.partition("/")[0]]
        assert std == pytest.approx(gain * (2 / columns) ** 0.5, rel=0.03), name


def test_other_initial_weights_go_by_the_branches_of_their_side() -> None:
    (found,) = run_distributed(initial_stds, 1, "post")
    branches = {"encoder": 2 * ENCODER, "decoder": 3 * DECODER}
    for name, std in found.items():
        residual = name.endswith(("output/0", "down/0"))
        expected = 0.02 / (branches[name.partition("/")[0]] ** 0.5 if residual else 1)
        assert std == pytest.approx(expected, rel=0.03), name


def moved(branches: int, stack: Depth) -> float:
    """What the updates of a stack move its output by, at most, in the paper's units: its matrices of gain beta count
    twice in each branch."""
    return branches * 2 * (stack.beta / stack.alpha) ** 2


@pytest.mark.parametrize(("encoder", "decoder"), [(6, 6), (18, 18), (100, 100), (3, 24)])
def test_factors_of_deepnorm_keep_updates_within_the_bound_of_the_paper(encoder: int, decoder: int) -> None:
    """They are what its theory leaves (arXiv 2203.00555, 4): alpha beta = 2^(-1/2), and an update moves the output of a
    stack by 1, that of the decoder by way of the encoder too: each cross-attention hands on beta^2 / alpha of what
    moves there. Two digits are published for the encoder."""
    first, second, alone = encoder_of(encoder, decoder), decoder_of(decoder), single_stack(encoder)
    for stack, near in ((first, 0.01), (second, 1e-6), (alone, 1e-6)):
        assert stack.alpha * stack.beta == pytest.approx(0.5**0.5, rel=near)
    assert moved(3 * decoder, second) == pytest.approx(1)
    assert moved(2 * encoder, alone) == pytest.approx(1)
    through = decoder * second.beta**2 / second.alpha
    assert through * moved(2 * encoder, first) == pytest.approx(1, rel=0.02)
