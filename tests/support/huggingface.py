"""Models that Hugging Face's architectures hold, with a tokenizer and tokens for them.

B  samples, S  tokens
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from support.tensors import Held
from support.training import SEQUENCE
from support.whole_model import VOCABULARY, source_of, whole_config, whole_model
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer, train_tokenizer
from pretrain.config.run import RunConfig
from pretrain.export.export import export
from pretrain.export.foreign import ForeignFolder, ForeignTensors

MLRA = {"kind": "mlra", "rank": 12}
LLAMA = {"activation": "swiglu", "normalization": "rms_norm", "bias": False}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT-2", {"positions": "learned"}),
    "gpt2 without biases": ("GPT-2", {"positions": "learned", "bias": False, "ffn_hidden_size": 48}),
    "gpt2 untied, mlra": ("GPT-2", {"positions": "learned", "tied_embeddings": False, "attention": MLRA}),
    "demo": ("GPT-NeoX", {}),
    "neox untied": ("GPT-NeoX", {"tied_embeddings": False, "rotary_base": 500.0}),
    "neox sigma": ("GPT-NeoX", {"reparametrization": "sigma", "normalization_epsilon": 1e-3}),
    "neox sigma, mlra": ("GPT-NeoX", {"reparametrization": "sigma", "attention": MLRA, "bias": False}),
    "neox sigma followed": ("GPT-NeoX", {"reparametrization": "sigma_stats_only"}),
    "llama": ("Llama", LLAMA),
    "llama grouped, untied": (
        "Llama",
        {**LLAMA, "tied_embeddings": False, "attention": {"num_key_value_heads": 2}, "rotary_base": 500.0},
    ),
    "llama with biases": ("Llama", {**LLAMA, "bias": True, "attention": {"num_key_value_heads": 1}}),
    "llama sigma, mlra": (
        "Llama",
        {
            **LLAMA,
            "bias": True,
            "reparametrization": "sigma",
            "attention": {**MLRA, "num_key_value_heads": 2},
        },
    ),
}
"""By name, the architecture that holds a model, and keys of [model]."""


@lru_cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        [path.read_text() for path in sorted(Path(json.__file__).parents[1].glob("*.py"))], VOCABULARY
    )


@lru_cache
def tokens_BS() -> Tensor:
    """A row of real text, and a row of anything."""
    real = tokenizer().encode(Path(json.__file__).read_text())[:SEQUENCE]
    drawn = torch.randint(VOCABULARY, (SEQUENCE,), generator=torch.Generator().manual_seed(0))
    return torch.stack((torch.tensor(real), drawn))


@lru_cache
def ours(name: str) -> tuple[Held, dict[str, Tensor]]:
    return whole_model(whole_config(MODELS[name][1]), tokens_BS())


def export_model(name: str, out: Path, dtype: str | None = None) -> str:
    """It exports a model and returns the name of its architecture."""
    source = source_of(whole_config(MODELS[name][1]), ours(name)[0], tokenizer().model)
    return export(source, "huggingface", out, dtype).architecture


def imported(folder: Path) -> tuple[RunConfig, ForeignTensors]:
    """The configuration that a folder of Hugging Face's gives, with what it does not say as in other tests, and its
    tensors."""
    foreign = ForeignFolder(folder)
    base = whole_config({}, foreign.dtype)
    table = base.model_dump(mode="json") | {"model": foreign.sections["model"]}
    table["data"] |= foreign.sections["data"]
    config = RunConfig.model_validate(table)
    return config, foreign.tensors(config.model, config.model.outline(config.data))
