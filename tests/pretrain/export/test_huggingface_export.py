"""What is exported computes the same in `transformers`: the output of every block, and the logits.

B  samples, S  tokens, V  vocabulary
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.huggingface import MODELS, export_model, ours, tokens_BS
from support.whole_model import VOCABULARY
from torch import Tensor
from transformers import AutoModelForCausalLM


@torch.no_grad()
def theirs(folder: Path) -> dict[str, Tensor]:
    """The output of each layer, by the names that ours have."""
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    decoder = model.base_model
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.update(
            {name: output if torch.is_tensor(output) else output[0]}
        )

    for number, block in enumerate(blocks):
        block.register_forward_hook(keep(f"layer_{number:02d}"))
    found = model(tokens_BS(), output_hidden_states=True)
    return {
        **outputs,
        "positions": found.hidden_states[0],
        "final_norm": found.hidden_states[-1],
        "head": found.logits,
    }


def divergence(logits: Tensor, reference: Tensor) -> float:
    """The largest KL divergence of a prediction."""
    p, q = (x.double().log_softmax(-1) for x in (reference, logits))
    return (p.exp() * (p - q)).sum(-1).max().item()


@pytest.mark.parametrize("name", MODELS)
def test_every_block_and_the_logits_are_the_same(name: str, tmp_path: Path) -> None:
    assert export_model(name, tmp_path / "out") == MODELS[name][0]
    expected = dict(ours(name)[1])
    found = theirs(tmp_path / "out")
    assert expected["head"][..., VOCABULARY:].isneginf().all()
    expected["head"] = expected["head"][..., :VOCABULARY]
    differences = {
        layer: ((output - expected[layer]).abs().max() / expected[layer].abs().max()).item()
        for layer, output in found.items()
    }
    assert len(differences) == 6
    assert max(differences.values()) <= 1e-5, differences
    assert divergence(found["head"], expected["head"]) < 1e-9
