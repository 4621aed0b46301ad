"""A loss is in fp32 where a model computes in less, and in float64 where it computes in that."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.forecasting_model import forecasting_batches, forecasting_config
from support.speech_model import speech_batches, speech_config
from support.training import Layout, make_batches, make_config
from support.translation import translation_batches, translation_config

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.inference.model import build_layers
from pretrain.tasks.forecasting.config import ForecasterConfig
from pretrain.tasks.kinds import KINDS
from pretrain.tasks.registry import TASKS

TEXT_AND_SPEECH: dict[str, tuple[RunConfig, Callable[..., Any]]] = {
    "gpt": (make_config(Layout()), make_batches),
    "translation": (translation_config(Layout()), translation_batches),
    "speech": (speech_config(Layout()), speech_batches),
}


FORECASTERS = [kind.model_fields["kind"].default for kind in KINDS if issubclass(kind, ForecasterConfig)]


@pytest.mark.parametrize("kind", [*TEXT_AND_SPEECH, *FORECASTERS])
def test_of_losses(kind: str, alone: ParallelMesh) -> None:
    config, batches = TEXT_AND_SPEECH.get(kind) or (
        forecasting_config(Layout(), {"kind": kind}),
        forecasting_batches,
    )
    (batch,) = batches(config, alone, 1)
    objective = TASKS[kind].objective(config.model, alone)
    found = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        layers = build_layers(config.model, config.data, alone, seed=1).to(dtype).eval()
        found[dtype] = objective(layers(*batch.inputs), batch.labels)
    assert [loss.dtype for loss in found.values()] == [torch.float32, torch.float32, torch.float64]
    expected = pytest.approx(found[torch.float64].item(), rel=1e-5)
    assert found[torch.float32].item() == expected
    assert found[torch.float32].item() != found[torch.float64].item(), "it has the digits of fp32"
