"""Models in one process whose every number counts, what comes out of each of their layers, and their exports.

B  samples, S  tokens
"""

import os
import resource
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.tensors import Held, initial_tensors
from support.training import Layout, make_config
from torch import Tensor

from data_pipeline.text.tokenizer import TOKENIZER_FILE
from parallel.mesh import ParallelMesh
from pretrain.checkpoint.manifest import CheckpointLayout, Manifest
from pretrain.config.run import RunConfig
from pretrain.export.export import export
from pretrain.export.source import Source
from pretrain.inference.model import TensorSource, load_model
from pretrain.step import TrainState

VOCABULARY = 4099


def whole_config(model: dict[str, Any], dtype: str = "fp32") -> RunConfig:
    """The configuration of a small GPT with a vocabulary that no power of two divides."""
    return make_config(Layout(dtype=dtype), **{"vocabulary_size": VOCABULARY, "num_layers": 3, **model})


def whole_model(config: RunConfig, tokens_BS: Tensor) -> tuple[Held, dict[str, Tensor]]:
    """It returns the tensors of a model and the output of each layer by name.

    Biases, gains and gammas are drawn, too: what is left at 0 or 1 could be anywhere.
    """
    held = initial_tensors(config, ParallelMesh.alone())
    torch.manual_seed(5)
    for name, tensor in held.tensors.items():
        if name.endswith("spectral.gamma_K"):
            tensor.mul_(torch.rand_like(tensor) + 0.5)
        elif ".spectral." not in name:
            tensor.detach().add_(0.05 * torch.randn_like(tensor))
        if name in ("embedding.weight", "head.weight"):
            tensor.detach()[VOCABULARY:] = 0
    return Held({name: tensor.detach() for name, tensor in held.tensors.items()}), outputs_of(
        config, held, tokens_BS
    )


@torch.no_grad()
def outputs_of(config: RunConfig, tensors: TensorSource, tokens_BS: Tensor) -> dict[str, Tensor]:
    """It returns the output of each layer of a model, by name."""
    model = load_model(config.model, config.data, "fp32", tensors, ParallelMesh.alone())
    outputs, x = {}, tokens_BS
    for name, layer in zip(config.model.outline(config.data).names, model.layers.layers, strict=True):
        x = outputs[name] = layer(x)
    return outputs


def source_of(config: RunConfig, held: TensorSource, tokenizer: bytes | None, **facts: Any) -> Source:
    """What a checkpoint with these tensors is exported from."""
    manifest = Manifest(
        tag="step00000050-a1",
        layout=CheckpointLayout(tensor=1, pipeline=1, data=1, zero_stage=0, dtype=config.precision.dtype),
        config_digest="0",
        data_fingerprint="f1",
        optimizer="adamw",
        run_id="0",
        state=TrainState(step=50, updates=49, samples=600, tokens=19200),
        files={},
        tensors={},
        versions={"torch": "2.13"},
    )
    companions = {} if tokenizer is None else {TOKENIZER_FILE: tokenizer}
    return Source(config, manifest, held, companions, **facts)


class Fatal(Held):
    """Reading one tensor of it is the end of the process."""

    def read(self, name: str) -> Tensor:
        if name == "layer_01.attention.output.weight":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name)


def export_and_die(config: RunConfig, tensors: Mapping[str, Tensor], tokenizer: bytes, out: Path) -> None:
    """It exports a model and is killed in the middle of it."""
    export(source_of(config, Fatal(tensors), tokenizer), "huggingface", out)


@dataclass(frozen=True)
class MadeUp:
    """The tensors of a model that is as large as its configuration says: they are made when they are read."""

    config: RunConfig

    @property
    def names(self) -> Collection[str]:
        return self.config.model.outline(self.config.data).tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.config.model.outline(self.config.data).tensors[name].shape

    def read(self, name: str) -> Tensor:
        return torch.ones(self.shape(name))


def peak_of_export(config: RunConfig, tokenizer: bytes, out: Path, peak: Any) -> None:
    """It exports a made-up model and hands over the most memory that the process took, in bytes."""
    export(source_of(config, MadeUp(config), tokenizer), "huggingface", out)
    peak.value = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
