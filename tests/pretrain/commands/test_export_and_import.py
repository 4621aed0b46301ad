"""`surefoot export` and `surefoot import`: a run in Hugging Face's form, and a run of that."""

import hashlib
import json
import keyword
import re
import shutil
import string
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import pytest
import tomli_w
import torch
from support.distributed import run_distributed
from support.runs import metrics, run_config, run_to_end
from support.training import Layout, slow
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.source import TextSource
from data_pipeline.text.tokenizer import Tokenizer, train_tokenizer
from pretrain.checkpoint.sealed import open_sealed
from pretrain.commands.__main__ import main
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.ledger.file import read_ledger
from pretrain.ledger.record import Kind
from pretrain.run_folder import LEDGER

MODEL = {"reparametrization": "sigma", "attention": {"num_heads": 4, "kind": "mlra"}, "dropout": 0.0}


def configured(folder: Path, corpus: Path) -> RunConfig:
    return run_config(Layout(tensor=2), folder, corpus, model=MODEL, checkpoint={"every_steps": 4})


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on two tensor-parallel ranks, with sigmaReparam and low-rank attention."""
    folder = tmp_path_factory.mktemp("runs")
    run_distributed(run_to_end, 2, configured(folder, corpus))
    return folder


@pytest.fixture(scope="module")
def exported(finished: Path) -> Path:
    """The model of its last checkpoint for `transformers`."""
    assert main(["export", f"{finished}/test", "--to", "huggingface", "--out", f"{finished}/exported"]) == 0
    return finished / "exported"


@torch.no_grad()
def mean_loss(folder: Path, steps: Iterable[list[TokenBatch]]) -> float:
    """The loss of an exported model by `transformers`, in nats per target."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0.0
    for batch in chain.from_iterable(steps):
        logits_BSV = model(batch.tokens_BS.long()).logits
        losses_BS = F.cross_entropy(logits_BSV.mT, batch.targets_BS.long(), reduction="none")
        total += (losses_BS * batch.weights_BS).double().sum().item()
        count += batch.weights_BS.sum().item()
    return total / count


def test_the_validation_loss_is_that_of_the_run(finished: Path, exported: Path) -> None:
    config = load_config(finished / "test")
    validation = ValidationSet(TextSource(), config.data, samples=12, data_rank=0, data_size=1)
    expected = metrics(finished, "validation_loss")[8]
    assert mean_loss(exported, validation) == pytest.approx(expected, rel=1e-5)


def test_the_tokenizer_is_that_of_the_data(corpus: Path, exported: Path) -> None:
    tokenizer, text = Tokenizer.load(corpus / "tokenizer.model"), " the run\tkeeps\n\u2581 its feet"
    assert AutoTokenizer.from_pretrained(exported)(text)["input_ids"] == tokenizer.encode(text)


def test_the_card_has_what_the_run_has_recorded(finished: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert f"- Loss of the last step: {metrics(finished)[8]:.4f} nats per token" in card
    assert (
        f"- Validation loss: {metrics(finished, 'validation_loss')[8]:.4f} nats per token at step 8" in card
    )
    assert open_sealed(finished / "test").manifest.data_fingerprint in card


def test_an_earlier_checkpoint_is_exported_by_its_tag(finished: Path, tmp_path: Path) -> None:
    model = f"{finished}/test@step00000004-a1"
    assert (
        main(["export", model, "--to", "safetensors", "--out", f"{tmp_path}/plain", "--dtype", "bf16"]) == 0
    )
    card = (tmp_path / "plain/README.md").read_text()
    assert "- Steps: 4 of 8" in card
    assert f"- Loss of the last step: {metrics(finished)[4]:.4f} nats per token" in card


def test_a_damaged_checkpoint_is_not_exported(finished: Path, tmp_path: Path) -> None:
    folder = open_sealed(finished / "test@step00000004-a1").folder
    copy = tmp_path / folder.name
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (damaged,) = copy.glob("state_00001.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert main(["export", str(copy), "--to", "safetensors", "--out", f"{tmp_path}/out"]) == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["safetensors", "huggingface"])
def test_an_export_is_used_like_the_checkpoint(
    to: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"{finished}/test", "--to", to, "--out", f"{tmp_path}/out"]) == 0
    (tmp_path / "text").write_text("the run keeps its feet while loss falls")
    losses, texts = [], []
    for model in (f"{finished}/test", f"{tmp_path}/out"):
        capsys.readouterr()
        assert main(["evaluate", model, "--text", f"{tmp_path}/text", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
        assert (
            main(["generate", model, "--prompt", "the run", "--temperature", "0", "--max-tokens", "20"]) == 0
        )
        texts.append(capsys.readouterr().out)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert texts[1] == texts[0] != "the run"


def test_a_link_to_an_empty_folder_may_be_exported_to(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert main(["export", f"{finished}/test", "--to", "safetensors", "--out", f"{tmp_path}/link"]) == 0
    assert (tmp_path / "empty/model.safetensors").is_file()
    assert main(["export", f"{finished}/test", "--to", "safetensors", "--out", f"{tmp_path}/link"]) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: (out / "tokenizer.model").unlink(), r"tokenizer\.model: No such file"),
        (lambda out: (out / "model.safetensors").write_bytes(b"\0"), "model.safetensors"),
        (lambda out: (out / "config.toml").unlink(), "config.toml"),
        (
            lambda out: other_tokenizer(out / "tokenizer.model"),
            "tokenizer.model: has 600 ids, but the model's",
        ),
        (
            lambda out: widened(out / "config.toml"),
            r"embedding\.weight: has shape .*10000000\) in this model",
        ),
    ],
    ids=["tokenizer", "tensors", "settings", "other-tokenizer", "other-settings"],
)
def test_a_damaged_export_is_told(
    damage: Callable[[Path], object],
    words: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["export", f"{finished}/test", "--to", "safetensors", "--out", f"{tmp_path}/out"]) == 0
    damage(tmp_path / "out")
    capsys.readouterr()
    assert main(["generate", f"{tmp_path}/out", "--prompt", "the run"]) in (2, 3, 4)
    assert re.search(words, capsys.readouterr().err)


def other_tokenizer(path: Path) -> None:
    """It puts one there that has more ids than the model has rows."""
    texts = [f"{number} {word}" for number in range(300) for word in ("keeps", "pieces", "of", "its", "own")]
    path.write_bytes(train_tokenizer([*texts, string.printable * 9, *keyword.kwlist], 600).model)


def widened(path: Path) -> None:
    """It asks for a model that no memory holds."""
    path.write_text(re.sub("(?m)^hidden_size = .*", "hidden_size = 10000000", path.read_text()))


# Import


@pytest.mark.parametrize(
    ("layout", "batch", "bound"),
    [
        (Layout(pipeline=2, accumulation=3), 4, 1e-5),
        slow(Layout(data=2, zero=2), 6, 1e-5),
        slow(Layout(data=2, zero=3), 6, 1e-5),
        slow(Layout(tensor=2, zero=1, dtype="bf16"), 12, 1e-2),
    ],
    ids=str,
)
def test_an_imported_run_begins_with_the_weights_and_trains(
    layout: Layout, batch: int, bound: float, corpus: Path, exported: Path, tmp_path: Path
) -> None:
    like = run_config(layout, tmp_path, corpus)
    settings = {
        name: value
        for name, value in like.model_dump(mode="json", exclude_none=True).items()
        if name != "model"
    }
    del settings["data"]["kind"]
    (tmp_path / "run.toml").write_text(tomli_w.dumps(settings))
    arguments = [
        "--out",
        f"{tmp_path}/test",
        "--config",
        f"{tmp_path}/run.toml",
        "--set",
        f"data.micro_batch_size={batch}",
    ]
    assert main(["import", "huggingface", str(exported), *arguments]) == 0
    config = load_config(tmp_path / "test")
    assert (config.run_folder, config.model.kind) == (tmp_path / "test", "gpt")
    assert (
        main(
            [
                "export",
                f"{tmp_path}/test",
                "--to",
                "huggingface",
                "--out",
                f"{tmp_path}/again",
                "--dtype",
                "fp32",
            ]
        )
        == 0
    )
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        exported / "model.safetensors"
    ).read_bytes()
    run_distributed(run_to_end, 2, config)
    stream = BatchStream(TextSource(), config.data, seed=config.run.seed, data_rank=0, data_size=1)
    assert metrics(tmp_path)[1] == pytest.approx(mean_loss(exported, [next(stream)]), rel=bound)
    stream.close()
    assert [*metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    kinds = [record.kind for record in read_ledger(tmp_path / "test" / LEDGER)]
    assert kinds[:2] == [Kind.RUN_START, Kind.CONVERTED]
    assert open_sealed(tmp_path / "test").manifest.state.step == 8


def test_settings_that_are_missing_or_wrong_are_named(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (
        "model.num_layers=3",
        "model.positions=learned",
        "model.reparametrization=sigma",
        "model.x=1",
        "x.y=1",
    )
    arguments = [word for setting in wrong for word in ("--set", setting)]
    assert main(["import", "huggingface", str(exported), "--out", f"{tmp_path}/run", *arguments]) == 2
    told = capsys.readouterr().err
    for words in (
        "model.num_layers = 3: that of",
        "model.positions = learned: that of",
        "model.reparametrization = sigma: that of",
        "model.x = 1: unknown key",
        "run.steps: required",
        "data.sources: required",
        "optimizer: required",
        "x.y = 1: unknown key",
    ):
        assert words in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting", ["model=3", "model.attention='dense'", "model.num_layers.x=1", "model.attention=3"]
)
def test_settings_that_are_no_settings_are_told(
    setting: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "huggingface", str(exported), "--out", f"{tmp_path}/run", "--set", setting]) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err


def test_files_that_nobody_knows_stay_behind(finished: Path, tmp_path: Path) -> None:
    """A checkpoint that somebody else made could bring a `config.json` along, and code that it points to."""
    run = tmp_path / "run"
    shutil.copytree(finished / "test", run)
    folder = open_sealed(run).folder
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for name in ("config.json", "modeling_evil.py"):
        (folder / name).write_text("{}")
        record = {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest(), "rank": 0}
        manifest["files"][name] = record
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    assert (
        main(["export", f"{run}@{folder.name}", "--to", "huggingface", "--out", str(tmp_path / "out")]) == 0
    )
    assert not (tmp_path / "out/modeling_evil.py").exists()
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "gpt_neox"
