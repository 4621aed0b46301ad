"""Models of Hugging Face's are read, or refused with every setting that stands in the way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.huggingface import MODELS, export_model, imported, ours, tokenizer, tokens_BS
from support.malicious_pickle import malicious_files
from support.training import slow
from support.whole_model import VOCABULARY, source_of, whole_config
from transformers import AutoConfig, AutoModelForCausalLM

from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.export.export import export
from pretrain.export.foreign import ForeignFolder

SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 48,
        "activation_function": "gelu",
        "vocab_size": VOCABULARY,
    },
    "gpt_neox": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 48,
        "use_parallel_residual": False,
        "vocab_size": VOCABULARY,
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 1.0},
    },
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "max_position_embeddings": 48,
        "attention_bias": True,
        "mlp_bias": True,
        "vocab_size": VOCABULARY,
    },
}
"""Of a small model of each architecture."""


def stock_model(kind: str, **settings: Any) -> Any:
    """A model of `transformers` with weights that all differ."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SETTINGS[kind], **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def export_again(folder: Path, out: Path) -> None:
    """It exports what has been imported."""
    config, tensors = imported(folder)
    export(source_of(config, tensors, tokenizer().model), "huggingface", out)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gpt2 without biases", "fp32"),
        ("neox sigma, mlra", "fp32"),
        ("llama grouped, untied", "bf16"),
        slow("gpt2 untied, mlra", "bf16"),
        slow("demo", "bf16"),
        slow("llama with biases", "fp32"),
    ],
)
def test_import_then_export_is_the_identity(name: str, dtype: str, tmp_path: Path) -> None:
    export_model(name, tmp_path / "first", dtype)
    export_again(tmp_path / "first", tmp_path / "second")
    for file in ("model.safetensors", "tokenizer.json", "generation_config.json", "tokenizer.model"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")
    )
    assert first == second


@pytest.mark.parametrize(
    "name", ["gpt2", "demo", "neox untied", "llama grouped, untied", "llama with biases"]
)
def test_export_then_import_is_the_identity(name: str, tmp_path: Path) -> None:
    export_model(name, tmp_path / "out")
    config, tensors = imported(tmp_path / "out")
    held, before = ours(name)[0].tensors, whole_config(MODELS[name][1])
    assert config.model.outline(config.data) == before.model.outline(before.data)
    assert sorted(tensors.names) == sorted(held)
    assert all(torch.equal(tensors.read(key), tensor) for key, tensor in held.items())


@pytest.mark.parametrize(
    ("tied", "dtype", "options"),
    [(True, torch.float32, {}), (False, torch.bfloat16, {"max_shard_size": "200KB"})],
    ids=["tied, fp32, one file", "untied, bf16, several files"],
)
@pytest.mark.parametrize("kind", SETTINGS)
def test_models_of_transformers_come_back_the_same(
    kind: str, tied: bool, dtype: torch.dtype, options: dict[str, str], tmp_path: Path
) -> None:
    stock_model(kind, tie_word_embeddings=tied).to(dtype).save_pretrained(tmp_path / "theirs", **options)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == bool(options)
    export_again(tmp_path / "theirs", tmp_path / "ours")
    model, again = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("theirs", "ours"))
    assert again.dtype == dtype
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(logits(again), logits(model))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(tokens_BS()).logits
    return found


@pytest.mark.parametrize(
    ("kind", "changes", "keys"),
    [
        ("gpt2", {"activation_function": "gelu_new"}, ["activation_function"]),
        ("gpt2", {"activation_function": None}, ["activation_function"]),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True},
            ["scale_attn", "cross"],
        ),
        ("gpt2", {"embd_pdrop": 0.0}, ["resid_pdrop"]),
        ("gpt2", {"n_head": None}, ["n_head"]),
        ("gpt_neox", {"use_parallel_residual": None}, ["use_parallel_residual"]),
        ("gpt_neox", {"rope_parameters": None}, ["rope_parameters.partial_rotary_factor"]),
        ("gpt_neox", {"rotary_pct": 0.25}, ["rotary_pct"]),
        ("gpt_neox", {"attention_bias": False, "hidden_act": "gelu_fast"}, ["attention_bias", "hidden_act"]),
        ("gpt_neox", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling.type", "factor"]),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "rope_parameters": None},
            ["rope_type"],
        ),
        ("llama", {"rope_theta": 5e5}, ["rope_theta"]),
        ("llama", {"mlp_bias": False}, ["mlp_bias"]),
        ("llama", {"head_dim": 16}, ["head_dim"]),
        ("llama", {"sliding_window": 128}, ["sliding_window"]),
        ("llama", {"quantization_config": {"bits": 4}}, ["quantization_config.bits"]),
        ("llama", {"hidden_act": "gelu"}, ["hidden_act"]),
    ],
    ids=str,
)
def test_what_our_models_cannot_compute_is_refused_by_its_key(
    kind: str, changes: dict[str, Any], keys: list[str], tmp_path: Path
) -> None:
    stock_model(kind).save_pretrained(tmp_path)
    change(tmp_path, changes)
    with pytest.raises(ConfigurationError) as raised:
        ForeignFolder(tmp_path)
    assert all(any(key in problem.key for problem in raised.value.problems) for key in keys), raised.value


def change(folder: Path, changes: dict[str, Any]) -> None:
    """It sets keys of config.json; None leaves one out."""
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(
        ConfigurationError, match="model_type is mistral; what can be read is gpt2, gpt_neox, llama"
    ):
        ForeignFolder(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_files_of_earlier_versions_are_read(kind: str, tmp_path: Path) -> None:
    """Without a prefix, with masks and tables beside the weights, with the settings' earlier names."""
    model = stock_model(kind, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    path, settings = tmp_path / "model.safetensors", json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(path)
    match kind:
        case "gpt2":
            tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
            tensors["h.0.attn.bias"] = torch.ones(1, 1, 48, 48).bool()
            tensors["lm_head.weight"] = tensors["wte.weight"].clone()
        case "gpt_neox":
            tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
            tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
            del settings["rope_parameters"]
            settings |= {"rotary_pct": 1.0, "rotary_emb_base": 700, "torch_dtype": "float32"}
        case "llama":
            tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
            del settings["rope_parameters"]
            settings |= {"rope_theta": 10000.0, "rope_scaling": None, "pretraining_tp": 2}
    save_file(tensors, path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    export_again(tmp_path, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits(again), logits(model))


Tensors = dict[str, torch.Tensor]


def without(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(name)


def having(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            without("transformer.h.1.ln_1.bias"),
            r"tensors are missing \(1\), such as transformer.h.1.ln_1.bias",
        ),
        (
            having("transformer.h.0.attn.scale", torch.ones(1)),
            "GPT-2 has no tensor transformer.h.0.attn.scale",
        ),
        (having("score.weight", torch.ones(2, 32)), "has no tensor transformer.score.weight"),
        (
            having("lm_head.weight", torch.ones(VOCABULARY, 32)),
            "lm_head.weight differs from transformer.wte.weight",
        ),
        (
            having("transformer.ln_f.bias", torch.ones(31)),
            r"ln_f.bias is \(31,\), by the settings it is \(32,\)",
        ),
        (having("transformer.ln_f.bias", torch.ones(32, dtype=torch.int8)), "ln_f.bias holds torch.int8"),
        (having("ln_f.bias", torch.ones(32)), "are the same"),
    ],
    ids=range(7),
)
def test_tensors_that_do_not_fit_are_named(
    damage: Callable[[Tensors], Any], words: str, tmp_path: Path
) -> None:
    stock_model("gpt2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        imported(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    stock_model("gpt2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.ln_f.bias"][7] = number
    save_file(tensors, tmp_path / "model.safetensors")
    _, found = imported(tmp_path)
    with pytest.raises(CheckpointError, match=r"ln_f\.bias holds NaN or infinity"):
        found.read("final_norm.norm.bias")


@pytest.mark.parametrize("trick", ["zip", "raw_pickle"])
def test_pickles_are_refused_unread(trick: str, tmp_path: Path) -> None:
    stock_model("gpt2").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    (tmp_path / "pytorch_model.bin").write_bytes(malicious_files(canary)[trick])
    with pytest.raises(CheckpointError, match="loading a pickle runs whatever code is in it"):
        ForeignFolder(tmp_path)
    assert not canary.exists()


def test_an_index_leads_out_of_no_folder(tmp_path: Path) -> None:
    stock_model("gpt2").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"wte.weight": "../model.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names what is no file of the folder"):
        ForeignFolder(tmp_path / "model")


def test_a_cache_of_links_is_read(tmp_path: Path) -> None:
    stock_model("gpt2").save_pretrained(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{path.name}")
    assert ForeignFolder(tmp_path / "snapshot").dtype == "fp32"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": []}', '{"model_type": "gpt2", "n_embd": [NaN]}']
)
def test_settings_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ConfigurationError, CheckpointError), match=r"config\.json"):
        ForeignFolder(tmp_path)
