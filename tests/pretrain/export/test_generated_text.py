"""`transformers` writes the same text with an export as `surefoot generate` does."""

from pathlib import Path

import pytest
import torch
from support.huggingface import export_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from parallel.mesh import ParallelMesh
from pretrain.export.opened import open_model
from pretrain.inference.generate import continuation
from pretrain.inference.model import load_model
from pretrain.inference.sampling import Sampling
from pretrain.tasks.registry import TASKS


@pytest.mark.parametrize("name", ["gpt2", "demo", "llama grouped, untied"])
@pytest.mark.parametrize("prompt", ["", "def main(:\n"])
def test_the_likeliest_text_is_the_same(name: str, prompt: str, tmp_path: Path, alone: ParallelMesh) -> None:
    """Given end-of-text before the prompt, as ours takes it for the beginning of a text."""
    folder, greedy = tmp_path / "out", {"max_new_tokens": 20, "do_sample": False}
    export_model(name, folder)
    opened = open_model(folder)
    config = opened.config
    codec = TASKS[config.model.kind].text(config.model, config.data, opened.companion)
    assert codec
    model = load_model(config.model, config.data, "fp32", opened.tensors, alone)
    text = "".join(continuation(model, codec, prompt, Sampling(temperature=0), 20))
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]])
    found = theirs.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[0, ids.shape[1] :]
    assert text == tokenizer.decode(found, skip_special_tokens=True)
    assert len(text) > 10
