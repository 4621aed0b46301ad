"""An export is whole or not there, says what it is, and holds plain matrices."""

import json
import multiprocessing
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.disk import small_disk
from support.huggingface import MLRA, MODELS, ours, tokenizer, tokens_BS
from support.speech_model import speech_config
from support.tensors import Held
from support.training import Layout
from support.translation import translation_config
from support.whole_model import (
    VOCABULARY,
    export_and_die,
    outputs_of,
    peak_of_export,
    source_of,
    whole_config,
)

from data_pipeline.errors import DataError
from pretrain.checkpoint.certificate import Certificate
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.export.export import export
from pretrain.export.source import Source


def source(name: str, dtype: str = "fp32", **facts: Any) -> Source:
    return source_of(whole_config(MODELS[name][1], dtype), ours(name)[0], tokenizer().model, **facts)


@pytest.mark.parametrize("name", ["demo", "gpt2 untied, mlra", "neox sigma, mlra", "llama sigma, mlra"])
def test_plain_tensors_make_the_model_that_the_configuration_beside_them_says(
    name: str, tmp_path: Path
) -> None:
    exported = export(source(name), "safetensors", tmp_path / "out")
    tensors, config = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_config(tmp_path / "out" / "config.toml"),
    )
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        key: size.shape for key, size in config.model.outline(config.data).tensors.items()
    }
    assert (exported.tensors, exported.numbers) == (len(tensors), sum(t.numel() for t in tensors.values()))
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer().model
    logits = outputs_of(config, Held(tensors), tokens_BS())["head"]
    expected = ours(name)[1]["head"][..., :VOCABULARY]
    assert ((logits - expected).abs().max() / expected.abs().max()).item() <= 1e-5


@pytest.mark.parametrize("to", ["safetensors", "huggingface"])
def test_a_model_without_norms_or_of_mixed_kinds_goes_to_plain_tensors_alone(to: Any, tmp_path: Path) -> None:
    config = whole_config({"normalization": "rms_norm"})
    held = ours("demo")[0]
    if to == "safetensors":
        export(source_of(config, held, tokenizer().model), to, tmp_path / "out")
        return
    with pytest.raises(ConfigurationError, match="`--to safetensors` takes every model"):
        export(source_of(config, held, tokenizer().model), to, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ({"normalization": "rms_norm"}, ["model.positions", "model.normalization", "model.activation"]),
        ({"norm_placement": "post"}, ["model.norm_placement", "model.normalization"]),
        ({"norm_placement": "none", "positions": "learned"}, ["model.norm_placement"]),
        ({"attention": {"num_key_value_heads": 2}}, ["model.attention.num_key_value_heads"]),
        ({"attention": {**MLRA, "num_key_value_heads": 1}}, ["model.attention.num_key_value_heads"]),
    ],
    ids=str,
)
def test_keys_that_stand_in_the_way_are_named(model: dict[str, Any], keys: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        export(
            source_of(whole_config(model), ours("demo")[0], tokenizer().model),
            "huggingface",
            tmp_path / "out",
        )
    problems = raised.value.problems
    assert "`--to safetensors` takes every model. In the way are:\n  model." in str(raised.value)
    assert {*keys} <= {problem.key for problem in problems}
    assert not {problem.key for problem in problems} & {
        "model.bias",
        "model.attention.kind",
        "model.reparametrization",
    }
    assert {problem.rule.split(" needs ")[0] for problem in problems} == {"GPT-2", "GPT-NeoX", "Llama"}


@pytest.mark.parametrize("configured", [speech_config, translation_config])
def test_of_a_kind_without_architectures_no_keys_are_in_the_way(
    configured: Callable[[Layout], RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"there is none for its kind.* takes every model$"):
        export(source_of(configured(Layout()), Held({}), None), "huggingface", tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("dtype", [None, "fp32", "bf16"])
def test_numbers_are_rounded_once_to_the_dtype_of_the_run_or_to_that_asked_for(
    dtype: Any, tmp_path: Path
) -> None:
    exported = export(source("demo", "bf16"), "safetensors", tmp_path / "out", dtype)
    assert exported.dtype == dtype or (exported.dtype, dtype) == ("bf16", None)
    wanted = torch.float32 if dtype == "fp32" else torch.bfloat16
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(tensor, ours("demo")[0].read(name)[: len(tensor)].to(wanted)), name


def test_sigma_is_folded_as_training_does_it(tmp_path: Path) -> None:
    """What = (gamma / sigma) W of the weight in the compute dtype."""
    export(source("neox sigma", "bf16"), "safetensors", tmp_path / "out")
    held, tensors = ours("neox sigma")[0], load_file(tmp_path / "out" / "model.safetensors")
    name = "layer_02.attention.qkv.linear"
    factors = held.read(f"{name}.spectral.gamma_K") / held.read(f"{name}.spectral.sigma_K")
    query, key, value = held.read(f"{name}.weight").bfloat16().split(32)
    folded = torch.cat([torch.mul(w, f) for w, f in zip((query, key, value), factors.tolist(), strict=True)])
    assert torch.equal(tensors[f"{name}.weight"], folded)
    assert not any("spectral" in name for name in tensors)


def test_their_library_opens_our_file(tmp_path: Path) -> None:
    export(source("demo"), "huggingface", tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("gpt_neox.embed_in.weight").shape == (VOCABULARY, 32)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }


def test_a_model_without_its_tokenizer_is_no_model_of_theirs(tmp_path: Path) -> None:
    bare = source_of(whole_config({}), ours("demo")[0], None)
    export(bare, "safetensors", tmp_path / "plain")
    with pytest.raises(DataError, match=r"holds no tokenizer\.model"):
        export(bare, "huggingface", tmp_path / "out")


# The folder


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_is_left_alone(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    match kind:
        case "file":
            out.write_text("mine")
        case "folder":
            out.mkdir()
            (out / "mine").touch()
        case "link":
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "mine").touch()
            out.symlink_to("elsewhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match=r"--out .*out: is there already"):
        export(source("demo"), "safetensors", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(source("demo"), "safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_filled_and_the_link_stays(there: bool, tmp_path: Path) -> None:
    """As `prepare --out` does it: the folder may lie on another disk than its name."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/folder")
    if there:
        (tmp_path / "disk/folder").mkdir()
    export(source("demo"), "safetensors", tmp_path / "out")
    assert (tmp_path / "out").readlink() == Path("disk/folder")
    assert (tmp_path / "disk/folder/model.safetensors").is_file()
    assert sorted(path.name for path in (*tmp_path.iterdir(), *(tmp_path / "disk").iterdir())) == [
        "disk",
        "folder",
        "out",
    ]


@pytest.mark.parametrize(
    ("size", "words"), [(400_000, "free, but .* are needed"), (900_000, "No space left on device")]
)
def test_a_full_disk_is_named_and_left_as_it_was(size: int, words: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        with pytest.raises(CheckpointError, match=f"disk.*{words}"):
            export(source("demo"), "huggingface", disk / "out")
        assert [*disk.iterdir()] == []


def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    arguments = (whole_config({}), ours("demo")[0].tensors, tokenizer().model, tmp_path / "out")
    process = multiprocessing.get_context("spawn").Process(target=export_and_die, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.out\.\w+\.tmp", left.name)
    export(source("demo"), "huggingface", tmp_path / "out")


LARGE = {
    "hidden_size": 1280,
    "num_layers": 24,
    "attention": {"num_heads": 20, "kind": "mlra"},
    "reparametrization": "sigma",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_large_model_takes_the_memory_of_two_of_its_tensors(tmp_path: Path) -> None:
    config = whole_config({**LARGE, "vocabulary_size": 65_537})
    outline = config.model.outline(config.data)
    assert sum(layer.size for layer in outline.layers) > 500_000_000
    spawn = multiprocessing.get_context("spawn")
    peak = spawn.Value("q")
    process = spawn.Process(target=peak_of_export, args=(config, tokenizer().model, tmp_path / "out", peak))
    process.start()
    process.join()
    assert process.exitcode == 0
    largest = max(4 * size.size for layer in outline.layers for size in layer.parameters)
    assert peak.value < 2 * largest + 2**30, f"{peak.value:,} bytes"


# The card


def test_the_card_says_where_the_model_comes_from(tmp_path: Path) -> None:
    facts = {
        "certificate": Certificate(tag="step00000050-a1", step=66, horizon=16, manifest="0" * 64),
        "step": {"step": 50, "loss": 4.25},
        "validation": {"step": 40, "validation_loss": 4.5, "validation_perplexity": 90.0},
    }
    export(source("neox sigma, mlra", **facts), "huggingface", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "library_name: transformers",
        "# test",
        "- Steps: 50 of 100, 49 updates, 600 samples",
        "- Tokens: 19,200",
        "- Loss of the last step: 4.2500 nats per token",
        "- Validation loss: 4.5000 nats per token at step 40",
        "- Data and tokenizer, by fingerprint: `f1`",
        "- Health: certified at step 66: 16 healthy steps had followed",
        "- Trained with: `torch 2.13`",
    ):
        assert line in card.splitlines()
    assert "sigmaReparam (folded into the weights), low-rank attention of rank 12" in card
    assert "as GPT-NeoX" in card


def test_a_card_without_a_run_says_what_is_not_known(tmp_path: Path) -> None:
    export(source("demo"), "huggingface", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- Loss of the last step: not recorded" in card
    assert "- Health: not certified" in card
    assert "licence" in card


def test_what_comes_from_outside_stays_text_in_the_card(tmp_path: Path) -> None:
    evil = "x`\n---\nlicense: mit\n\x1b[31m\u202e<script>"
    bad = source("demo", step={"loss": evil}, validation={"step": evil})
    manifest = bad.manifest.model_copy(update={"data_fingerprint": evil, "versions": {evil: evil}})
    export(replace(bad, manifest=manifest), "huggingface", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" not in card.splitlines()
    assert card.splitlines().count("---") == 2
    assert not set(card) & {"\x1b", "\u202e"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt_neox"
