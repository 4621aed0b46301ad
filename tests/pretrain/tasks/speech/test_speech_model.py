"""An encoder of speech equals the formulas, written plainly in float64, forward and backward, and pads without a trace.

B  utterances, F  frames, T  outputs, D  hidden size
"""

import math
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.plain_formulas import attend, feed_forward, norm, sinusoids
from support.speech_model import MEL_BINS, UNITS, speech_batch, speech_batches, speech_config
from support.training import Layout, make_mesh
from torch import Tensor

from parallel.pipeline import SequentialLayers
from pretrain.engine.build import model_parts
from pretrain.models.depth import single_stack
from pretrain.runtime.kernels import detect_kernels
from pretrain.tasks.speech.alignment import collapsed
from pretrain.tasks.speech.config import SpeechModelConfig
from pretrain.tasks.speech.objective import CTC, UnitErrorRate

LAYERS = 3
MODELS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post_sinusoidal": {"norm_placement": "post", "positions": "sinusoidal"},
    "none": {"norm_placement": "none", "bias": False, "subsampling": {"kernel": 3, "stride": 2}},
    "deepnorm_mlra": {
        "norm_placement": "deepnorm",
        "activation": "swiglu",
        "bias": False,  # the softmax does not see a constant added to all keys: their bias would have no gradient
        "positions": "learned",
        "attention": {"kind": "mlra", "rank": 6, "num_key_value_heads": 2},
    },
}


def subsampled(model: SpeechModelConfig, weights: dict[str, Tensor], features_BFM: Tensor) -> Tensor:
    """Each output from the frames around every stride-th one; there are zeros before the first and behind the last."""
    kernel, stride = model.subsampling.kernel, model.subsampling.stride
    weight = weights["layers.0.convolution.weight"]
    around = torch.nn.functional.pad(features_BFM, (0, 0, kernel // 2, kernel))
    outputs = []
    for first in range(0, features_BFM.shape[1], stride):
        y = torch.einsum("bkm,omk->bo", around[:, first : first + kernel], weight)
        y = y + weights["layers.0.convolution.bias"] if model.bias else y
        values, gates = y.chunk(2, dim=-1)
        outputs.append(values * gates.sigmoid())
    return torch.stack(outputs, dim=1)


def positioned(model: SpeechModelConfig, weights: dict[str, Tensor], x_BTD: Tensor) -> Tensor:
    _, length, size = x_BTD.shape
    if model.positions == "learned":
        return x_BTD + weights["layers.1.positions_SD"][:length]
    return x_BTD if model.positions == "rotary" else x_BTD + sinusoids(length, size)


def add(model: SpeechModelConfig, weights: dict[str, Tensor], name: str, x: Tensor, branch: Any) -> Tensor:
    normed, f = partial(norm, model, weights, f"{name}_norm"), partial(branch, model, weights, name)
    match model.norm_placement:
        case "pre":
            return x + f(normed(x))
        case "post":
            return normed(x + f(x))
        case "deepnorm":
            return normed(single_stack(LAYERS).alpha * x + f(x))
    return x + f(x)


def log_probabilities(model: SpeechModelConfig, weights: dict[str, Tensor], inputs: Any) -> Tensor:
    features_BFM, frames_B = inputs
    x = positioned(model, weights, subsampled(model, weights, features_BFM.double()))
    outputs_B = -(-frames_B // model.subsampling.stride)
    seen = (torch.arange(x.shape[1]) < outputs_B[:, None])[:, None, None]
    for layer in range(2, 2 + LAYERS):
        x = add(model, weights, f"layers.{layer}.attention", x, partial(attend, seen=seen))
        x = add(model, weights, f"layers.{layer}.feed_forward", x, feed_forward)
    x = norm(model, weights, f"layers.{2 + LAYERS}.norm", x) if model.norm_placement == "pre" else x
    logits = x @ weights[f"layers.{3 + LAYERS}.output.weight"].T
    bias = f"layers.{3 + LAYERS}.output.bias"
    return (logits + weights[bias] if bias in weights else logits).log_softmax(-1)


def negative_log_likelihood(logs_TV: Tensor, units: list[int]) -> Tensor:
    """By the forward variables of Graves et al. 2006, 4.1, one by one."""
    path = [0, *(u for unit in units for u in (unit, 0))]
    alpha = [logs_TV[0, path[0]], *([logs_TV[0, path[1]]] if units else [])]
    alpha += [logs_TV.new_tensor(-math.inf)] * (len(path) - len(alpha))
    for logs_V in logs_TV[1:]:
        before, alpha = alpha, []
        for i, unit in enumerate(path):
            ways = before[max(i - 1, 0) : i + 1]
            if i > 1 and unit and unit != path[i - 2]:
                ways = [before[i - 2], *ways]
            finite = [way for way in ways if way > -math.inf]
            total = torch.stack(finite).logsumexp(0) if finite else logs_V.new_tensor(-math.inf)
            alpha.append(total + logs_V[unit])
    return -torch.stack([a for a in alpha[-2:] if a > -math.inf]).logsumexp(0)


def build(name: str, **model: Any) -> tuple[Any, Any, SequentialLayers]:
    config = speech_config(Layout(), {"num_layers": LAYERS, **MODELS[name], **model})
    parts = model_parts(config, make_mesh(config.parallel), detect_kernels())
    return config, parts, SequentialLayers(parts.layers)


def outcome(name: str) -> tuple[float, float, list[tuple[str, float]]]:
    """Our loss, the reference's, and per parameter the relative difference of the gradients."""
    config, parts, model = build(name)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    (batch,) = speech_batches(config, make_mesh(config.parallel), 1)
    loss = parts.objective(model(*batch.inputs), batch.labels)
    loss.backward()
    weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    logs_BTV = log_probabilities(config.model, weights, batch.inputs)
    expected = torch.zeros((), dtype=torch.float64)
    for row, (length, frames) in enumerate(zip(batch.lengths_B, batch.frames_B, strict=True)):
        outputs = -(-int(frames) // config.model.subsampling.stride)
        nll = negative_log_likelihood(logs_BTV[row, :outputs], batch.units_BU[row, :length].tolist())
        expected = expected + nll * batch.weights_B[row]
    expected.backward()
    differences = []
    for n, p in model.named_parameters():
        ours, theirs = p.grad, weights[n].grad
        assert ours is not None
        assert theirs is not None
        differences.append((n, ((ours - theirs).norm() / theirs.norm()).item()))
    return loss.item(), expected.item(), differences


@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_float64(name: str) -> None:
    ((ours, theirs, gradients),) = run_distributed(outcome, 1, name)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert max(difference for _, difference in gradients) < 2e-5, gradients


def alone_and_together(name: str) -> list[float]:
    """How much the logits of each utterance differ when it comes alone, relative to the largest."""
    config, _, model = build(name)
    generator = torch.Generator().manual_seed(2)
    heard = [torch.randn(n, MEL_BINS, generator=generator) for n in (58, 30, 7, 1)]
    together = model.eval()(*speech_batch(heard, [torch.ones(1, dtype=torch.int64)] * 4).inputs)
    found = []
    for features, logits_TV in zip(heard, together, strict=True):
        (alone_TV,) = model(*speech_batch([features], [torch.ones(1, dtype=torch.int64)]).inputs)
        assert len(alone_TV) == -(-len(features) // config.model.subsampling.stride)
        difference = (alone_TV - logits_TV[: len(alone_TV)]).abs().max() / alone_TV.abs().max()
        found.append(difference.item())
    return found


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name: str) -> None:
    (differences,) = run_distributed(alone_and_together, 1, name)
    assert max(differences) < 1e-5


def labels(units: list[int], outputs: int) -> tuple[Tensor, ...]:
    return (
        torch.tensor([units or [0]]),
        torch.tensor([len(units)]),
        torch.tensor([3 * outputs]),
        torch.ones(1),
    )


@pytest.mark.parametrize("units", [[], [1], [1, 1], [2, 1, 2], [1, 1, 1]])
def test_ctc_sums_over_all_alignments(units: list[int]) -> None:
    outputs, vocabulary = 5, 3
    logits_TV = torch.randn(outputs, vocabulary, generator=torch.Generator().manual_seed(3))
    chances_TV = logits_TV.double().softmax(-1)
    total = sum(
        math.prod(float(chances_TV[t, unit]) for t, unit in enumerate(path))
        for path in product(range(vocabulary), repeat=outputs)
        if [span.unit for span in collapsed(path)] == units
    )
    loss = CTC(stride=3)(logits_TV[None], labels(units, outputs))
    assert loss.item() == pytest.approx(-math.log(total), rel=1e-5)


def test_ctc_is_infinite_where_nothing_aligns() -> None:
    """Two equal units need a blank between them."""
    assert CTC(stride=3)(torch.zeros(1, 2, 3), labels([1, 1], 2)).item() == math.inf
    assert CTC(stride=3)(torch.zeros(1, 3, 3), labels([1, 1], 3)).isfinite()


def test_ctc_takes_logarithms_in_fp32() -> None:
    logits = torch.randn(1, 200, UNITS, generator=torch.Generator().manual_seed(4)).bfloat16()
    ours = CTC(stride=3)(logits, labels([1, 2, 3], 200))
    assert ours.dtype is torch.float32
    assert ours.item() == pytest.approx(
        CTC(stride=3)(logits.double(), labels([1, 2, 3], 200)).item(), rel=1e-5
    )


def test_unit_error_rate() -> None:
    """Of (1 2), (3) and a masked utterance: 1 1 _ 2 2 is right, 3 3 _ 3 is one too many."""
    said = torch.tensor([[1, 1, 0, 2, 2], [3, 3, 0, 3, 1], [1, 1, 1, 1, 1]])
    outputs = torch.nn.functional.one_hot(said, 4).float()
    weights = torch.tensor([1.0, 1.0, 0.0])
    transcripts, lengths = torch.tensor([[1, 2], [3, 0], [0, 0]]), torch.tensor([2, 1, 0])
    metric = UnitErrorRate(stride=3)
    sums = metric.sums(outputs, (transcripts, lengths, torch.tensor([15, 12, 3]), weights))
    assert sums.tolist() == [1, 3]
    assert metric.value(sums.tolist(), 0.0) == pytest.approx(1 / 3)
