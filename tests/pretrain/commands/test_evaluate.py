"""`surefoot evaluate`: the loss that validation has told, and what it comes to by byte and by word."""

import json
import math
import shutil
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.runs import metrics, run_config, run_to_end
from support.training import SEQUENCE, Layout
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from data_pipeline.reading.stream import ValidationSet
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.command import main as prepare
from data_pipeline.text.measure import TextMeasure
from data_pipeline.text.passage import passage_batches
from data_pipeline.text.source import TextSource
from data_pipeline.text.tokenizer import Tokenizer, train_tokenizer
from pretrain.commands.__main__ import main
from pretrain.config.loader import load_config

TEXT = "def f(x):\n    return x  # naïve 🐾\n" * 7


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in two layouts and precisions, the second with sigmaReparam."""
    folder = tmp_path_factory.mktemp("runs")
    plain = run_config(Layout(tensor=2), folder, corpus)
    run_distributed(run_to_end, 2, plain)
    named = {
        "run": {"folder": str(folder), "steps": 8, "name": "bf16"},
        "model": {"reparametrization": "sigma"},
    }
    layout = Layout(pipeline=2, dtype="bf16", zero=1, accumulation=3)
    run_distributed(run_to_end, 2, run_config(layout, folder, corpus, **named))
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["evaluate", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_is_the_loss_that_validation_has_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, f"{runs}/test")
    assert found["loss"] == pytest.approx(metrics(runs, "validation_loss")[8], rel=1e-6)
    assert found["perplexity"] == pytest.approx(metrics(runs, "validation_perplexity")[8], rel=1e-6)
    assert found["baseline"] is None, "12 samples are not the whole set"


def test_of_a_run_in_bf16_with_sigma_too(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (runs / "bf16/metrics.jsonl").read_text().splitlines()]
    told = [row["validation_loss"] for row in rows if "validation_loss" in row][-1]
    assert evaluated(capsys, f"{runs}/bf16")["loss"] == pytest.approx(told, rel=1e-5)


def test_the_whole_set_has_a_baseline(runs: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, f"{runs}/test", "--data", str(corpus))
    manifest = json.loads((corpus / "validation/manifest.json").read_text())
    assert found["targets"] == manifest["tokens"]
    assert found["baseline"]["loss"] == manifest["unigram_cross_entropy"]
    assert evaluated(capsys, f"{runs}/test", "--data", str(corpus / "validation"))["loss"] == found["loss"]
    first = evaluated(capsys, f"{runs}/test", "--data", str(corpus), "--samples", "2")
    assert first["targets"] == 2 * SEQUENCE


def test_a_text_is_counted_to_the_byte(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(TEXT)
    found = evaluated(capsys, f"{runs}/test", "--text", str(tmp_path / "text"))
    assert found["bytes"] == len(TEXT.encode())
    assert found["words"] == len(TEXT.split())
    nats = found["loss"] * found["targets"]
    assert found["loss_per_byte"] == pytest.approx(nats / found["bytes"])
    assert found["perplexity_per_word"] == pytest.approx(math.exp(nats / found["words"]))
    assert found["baseline"]["name"] == "a unigram model of this text"


def test_transformers_comes_to_the_same(
    runs: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an export, on the same samples: the run's validation, ours of run and exports, and theirs."""
    for form in ("huggingface", "safetensors"):
        assert main(["export", f"{runs}/test", "--to", form, "--out", str(tmp_path / form)]) == 0
    capsys.readouterr()
    words = ["--data", str(corpus), "--samples", "12"]
    found = [evaluated(capsys, str(place), *words)["loss"] for place in (runs / "test", *tmp_path.iterdir())]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "huggingface").eval()
    data = load_config(runs / "test").data
    held_out = ValidationSet(TextSource(), data, samples=12, data_rank=0, data_size=1)
    sums = [0.0, 0.0]
    for batch in chain.from_iterable(held_out):
        with torch.no_grad():
            logits = model(batch.tokens_BS).logits
        nll = F.cross_entropy(logits.flatten(0, 1).double(), batch.targets_BS.flatten(), reduction="none")
        sums[0] += float((nll * batch.weights_BS.flatten()).sum())
        sums[1] += float(batch.weights_BS.sum())
    held_out.close()
    told = metrics(runs, "validation_loss")[8]
    assert [*found, sums[0] / sums[1]] == pytest.approx([told] * 4, rel=1e-6)


def test_an_export_has_no_data_of_its_own(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"{runs}/test", "--to", "huggingface", "--out", str(tmp_path / "out")]) == 0
    assert main(["evaluate", str(tmp_path / "out")]) == 3
    assert "give it --data or --text" in capsys.readouterr().err


def test_a_harness_that_is_not_there_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("lm_eval"):
        pytest.skip("lm_eval is installed")
    assert main(["evaluate", f"{runs}/test", "--lm-eval", "hellaswag"]) == 2
    assert "lm_eval is not installed" in capsys.readouterr().err


def test_people_read_the_same(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"{runs}/test"]) == 0
    told = capsys.readouterr()
    assert f"loss          {metrics(runs, 'validation_loss')[8]:.5f}"[:-1] in told.out
    assert "(certified)" in told.err


REFUSED = {
    "no text": (("--text", "TMP/none"), 3, "No such file"),
    "bytes": (("--text", "TMP/bytes"), 3, "--text"),
    "UTF-16": (("--text", "TMP/wide"), 3, "holds NUL bytes, as no text does"),
    "JSON lines": (
        ("--text", "TMP/lines"),
        3,
        "is JSON lines, and a text is taken as it is; `surefoot prepare",
    ),
    "nothing": (("--text", "TMP/empty"), 3, "there is no target"),
    "no data": (("--data", "TMP"), 3, "manifest.json"),
    "a secret": (("--data", "https://user:secret@host/x"), 2, "must have no user, password or query"),
    "other data": (("--data", "TMP/other"), 3, "tokenizer"),
    "a search": (("--beam", "3"), 2, "--beam: means nothing for a model of kind gpt; leave it out"),
    "a search for nothing": (("--loss-only", "--beam", "3"), 2, "means nothing with --loss-only"),
    "alignments of text": (("--alignments", "TMP/file"), 2, "--alignments: means nothing for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_of_the_model_is_refused(
    case: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, code, told = REFUSED[case]
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "wide").write_bytes("without a mark".encode("utf-16-le"))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "lines").write_text('{"text": "one"}\n{"text": "two"}\n')
    if case == "other data":
        from_other_tokenizer(tmp_path / "other")
    assert main(["evaluate", f"{runs}/test", *(word.replace("TMP", str(tmp_path)) for word in words)]) == code
    found = capsys.readouterr().err
    assert told in found
    assert "secret" not in found


def test_damaged_samples_are_no_silent_loss_of_data(
    runs: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number of fewer samples than there are would be compared with those of all."""
    whole = evaluated(capsys, f"{runs}/test", "--data", str(corpus))
    data = shutil.copytree(corpus / "validation", tmp_path / "validation")
    shutil.copy(corpus / "tokenizer.model", tmp_path)
    (shard,) = data.glob("*.tar")
    with shard.open("r+b") as file:
        file.seek(600)
        file.write(b"rotten")
    assert main(["evaluate", f"{runs}/test", "--data", str(data)]) == 3
    told = capsys.readouterr()
    assert (
        f"damaged sample left out: {data}/{shard.name}: sample 0 at byte 0: checksum mismatch\n" in told.err
    )
    assert "1 damaged samples, more than data.damaged_sample_budget = 0 of the run allows" in told.err
    assert told.out == ""
    export = tmp_path / "export"
    assert main(["export", f"{runs}/test", "--to", "safetensors", "--out", str(export)]) == 0
    settings = (export / "config.toml").read_text()
    allowed = settings.replace("damaged_sample_budget = 0", "damaged_sample_budget = 1")
    (export / "config.toml").write_text(allowed)
    capsys.readouterr()
    assert evaluated(capsys, str(export), "--data", str(data))["targets"] == whole["targets"] - SEQUENCE


def from_other_tokenizer(out: Path) -> None:
    source = out.with_name("source.jsonl")
    texts = [f"word {n} is {n * 7919 % 10007}, {chr(97 + n % 26) * 5}" for n in range(2000)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--vocabulary-size", "300", "--sequence-length", str(SEQUENCE), "--validation-fraction", "0.3"]
    assert prepare([str(source), "--out", str(out), *words]) == 0


# Counting


def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], 300)


def test_every_token_of_a_text_is_a_target_once() -> None:
    ids = list(range(1, 12))
    batches = list(passage_batches(ids, 0, 4, 2))
    targets = torch.cat([batch.targets_BS[batch.weights_BS > 0] for batch in batches])
    inputs = torch.cat([batch.tokens_BS[batch.weights_BS > 0] for batch in batches])
    assert targets.tolist() == ids
    assert inputs.tolist() == [0, *ids[:-1]]
    assert [tuple(batch.tokens_BS.shape) for batch in batches] == [(2, 4), (2, 4)]


def test_words_that_blocks_cut_count_once_and_documents_do_not_run_together() -> None:
    model = tokenizer()
    ids = [*model.encode("naïve 🐾 x"), model.end_of_text, *model.encode("y z")]
    measure = TextMeasure(model)
    for token in ids:
        one = torch.tensor([[token]])
        measure.add(TokenBatch(one, one, torch.ones(1, 1)))
        measure.add(TokenBatch(one, one, torch.zeros(1, 1)))
    assert measure.totals() == {"byte": len("naïve 🐾 xy z".encode()), "word": 5}


def test_the_baseline_is_the_entropy_of_frequencies() -> None:
    measure = TextMeasure(tokenizer())
    targets = torch.tensor([[5, 5, 5, 7]])
    measure.add(TokenBatch(targets, targets, torch.ones(1, 4)))
    assert measure.baseline().loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
