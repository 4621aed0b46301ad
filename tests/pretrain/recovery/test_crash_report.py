"""What a run leaves behind when it gives up: the same in every layout, and readable without the run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.runs import run_config
from support.training import Layout, make_config, make_engine, make_mesh, slow
from support.watched import changed, run, story, watched

from data_pipeline.reading.stream import BatchStream
from data_pipeline.text.beside import tokenizer_beside
from data_pipeline.text.describe import spelled
from data_pipeline.text.source import TextSource
from pretrain.backend.setup import local_layers
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.fault import Fault
from pretrain.ledger.history import fold
from pretrain.ledger.record import Kind
from pretrain.probes.probe import ProbedModel
from pretrain.probes.weights import Sums, layer_rows
from pretrain.recovery.crash_report import SAMPLES
from pretrain.run_folder import EVIDENCE

LAYOUTS = [
    Layout(tensor=2, pipeline=2),
    Layout(data=2, zero=1),
    Layout(data=2, zero=3),
    slow(Layout(data=2, zero=1, dtype="bf16")),
    slow(Layout(data=2, zero=2)),
    slow(Layout(pipeline=2, data=2, zero=1)),
]


def rows_of(config: RunConfig) -> list[dict[str, Any]]:
    engine = make_engine(config, make_mesh(config.parallel))
    return layer_rows(engine.mesh.gather(engine.parameter_sums()), engine.layer_names)


def names(row: dict[str, Any]) -> tuple[str, str]:
    return row["layer"], row["parameter"]


def figures(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not isinstance(value, str)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layers_have_the_same_statistics_in_every_layout(layout: Layout) -> None:
    (whole,) = run_distributed(rows_of, 1, make_config(Layout(dtype=layout.dtype)))
    assert len(set(map(names, whole))) == len(whole) > 20
    for rows in run_distributed(rows_of, layout.world_size, make_config(layout)):
        assert [names(row) for row in rows] == [names(row) for row in whole]
        for ours, theirs in zip(rows, whole, strict=True):
            assert figures(ours) == pytest.approx(figures(theirs), rel=1e-6, abs=1e-9)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    row = Sums.of(torch.tensor([1.0, float("nan"), -3.0, float("inf")])).as_row()
    assert row == {"elements": 4, "not_finite": 2, "mean": -1.0, "std": 2.0, "max_abs": 3.0}


@pytest.fixture(scope="module")
def ended(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run in two tensor ranks whose gradients stay NaN: how it ended, and its folder."""
    folder = tmp_path_factory.mktemp("ended")
    ends = run_distributed(run, 2, watched(Layout(tensor=2), folder, corpus), "nan_gradient@12+200")
    assert len(set(ends)) == 1
    return ends[0], folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_gives_up_leaves_evidence_and_says_where(ended: tuple[str, Path]) -> None:
    end, folder = ended
    (evidence,) = (folder / "test" / EVIDENCE).iterdir()
    assert end.endswith(
        f"; gradients that are not finite come from rank 1, layer embedding; evidence is in {evidence}"
    )
    assert story(folder)[-1].kind is Kind.STOPPED
    assert story(folder)[-1].fields["reason"].endswith(str(evidence))
    assert sorted(path.name for path in evidence.iterdir()) == [
        "config.toml",
        "layers.jsonl",
        "metrics.jsonl",
        "samples.jsonl",
        "verdict.json",
    ]
    verdict = json.loads((evidence / "verdict.json").read_text())
    assert verdict["attempt"] == story(folder)[-1].attempt + 1
    assert verdict["reason"] in end
    assert verdict["gradient_norm"] == "nan"
    assert load_config(evidence / "config.toml").run.name == "test"
    assert lines(evidence / "metrics.jsonl")[-1]["attempt"] == verdict["attempt"]
    assert {row["not_finite"] for row in lines(evidence / "layers.jsonl")} == {
        0
    }  # every bad update was withheld


def run_with_a_layer_that_spoils_its_gradients(config: RunConfig, name: str) -> str:
    """From step 12 on the gradient that this layer of the last data rank hands on to those before it is NaN."""

    def spoil(within: Fault, engine: TrainEngine, attempt: int) -> None:
        layers = {engine.layer_names[index]: layer for index, layer in local_layers(engine.module)}
        if engine.mesh.data.last and attempt == 12:
            layers[name].register_full_backward_hook(
                lambda module, gradients, _: tuple(g if g is None else g * float("nan") for g in gradients)
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fault, "before_step", spoil)
        return run(config)


def test_gradients_that_spoil_in_a_block_are_traced_to_the_block_before(corpus: Path, tmp_path: Path) -> None:
    """On both data ranks every averaged gradient is bad; those of the second one alone began it."""
    config = watched(Layout(data=2, zero=1), tmp_path, corpus)
    for end in run_distributed(run_with_a_layer_that_spoils_its_gradients, 2, config, "layer_01"):
        assert "gradients that are not finite come from rank 1, layer layer_00;" in end


def test_without_a_watchdog_their_origin_is_named_too(corpus: Path, tmp_path: Path) -> None:
    config = changed(watched(Layout(tensor=2), tmp_path, corpus, enabled=False), run={"steps": 80})
    for end in run_distributed(run, 2, config, "nan_gradient@12+60"):
        assert "gradients that are not finite come from rank 1, layer embedding;" in end


def test_the_samples_that_led_to_it_are_there_as_text(ended: tuple[str, Path], corpus: Path) -> None:
    _, folder = ended
    (evidence,) = (folder / "test" / EVIDENCE).iterdir()
    verdict, samples = json.loads((evidence / "verdict.json").read_text()), lines(evidence / "samples.jsonl")
    drawn = [draw for start, stop in verdict["draws"] for draw in range(start, stop)]
    skipped = {draw for start, stop in fold(story(folder)).skips for draw in range(start, stop)}
    draws = [draw for draw in drawn if draw not in skipped]
    assert 0 < len(draws) <= SAMPLES
    assert [sample["draw"] for sample in samples] == draws
    texts = "<|endoftext|>".join(path.read_text() for path in sorted(corpus.parent.glob("raw/*.txt")))
    words = set(texts.replace("<|endoftext|>", " ").split())
    for sample in samples:
        inner = sample["text"].replace("<|endoftext|>", " ").split()[1:-1]  # a block may cut a word
        assert set(inner) <= words
        assert len(inner) > 3


def run_without_memory_for_statistics(config: RunConfig) -> str:
    def fail(model: ProbedModel) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            patch.setattr("pretrain.engine.engine.local_sums", fail)
        return run(config, "nan_gradient@12+200")


def test_what_fails_while_evidence_is_gathered_does_not_hide_why_the_run_ended(
    corpus: Path, tmp_path: Path
) -> None:
    config = watched(Layout(tensor=2), tmp_path, corpus)
    ends = run_distributed(run_without_memory_for_statistics, 2, config)
    assert [end.startswith("diverged") for end in ends] == [True] * 2
    assert story(tmp_path)[-1].fields["code"] == 5
    (evidence,) = (tmp_path / "test" / EVIDENCE).iterdir()
    assert "rank 1: RuntimeError('CUDA out of memory')" in lines(evidence / "layers.jsonl")[-1]["problem"]


def test_excerpts_are_the_samples_that_the_stream_hands_out(corpus: Path, tmp_path: Path) -> None:
    """By their text: what the tokens of a batch spell is what the excerpt of its draws says."""
    config = run_config(Layout(), tmp_path, corpus)
    stream = BatchStream(TextSource(), config.data, seed=3, data_rank=0, data_size=1)
    next(stream)
    before = stream.state()
    excerpts = list(stream.excerpts(range(*stream.sample_range())))
    again = BatchStream(TextSource(), config.data, seed=3, data_rank=0, data_size=1)
    tokens = torch.cat([batch.tokens_BS for batch in next(again)]).tolist()
    tokenizer = tokenizer_beside(stream._mixture.datasets[0], stream.manifest.tokenizer)
    for excerpt, row in zip(excerpts, tokens, strict=True):
        assert excerpt.text.startswith(spelled(row, tokenizer).rstrip("\N{REPLACEMENT CHARACTER}"))
        assert excerpt.shard.endswith(".tar")
    assert stream.state() == before
    stream.skip([(14, 20), (100, 500)])
    assert stream.unskipped([(10, 16), (100, 103)]) == [10, 11, 12, 13]
    stream.close()
    again.close()
