"""Examples of validation: what a model that is being trained says of the first samples, in whatever layout it lies."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sacrebleu
import torch
from support.distributed import run_distributed
from support.runs import contents, differences, newest_checkpoint, run_config, run_to_end
from support.sentences import sentences_run, write_sentences
from support.training import Layout, make_engine, make_mesh, slow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from data_pipeline.batches import Batch
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.reading.stream import ValidationSet
from data_pipeline.translation.batch import PADDING
from pretrain.config.run import RunConfig
from pretrain.evaluation.examples import dealt_out, open_examples
from pretrain.evaluation.validate import Validation
from pretrain.tasks.registry import TASKS
from pretrain.tasks.translation.examples import MORE, TIMES_SOURCE, Translations
from pretrain.tasks.translation.task import codec_of

SAMPLES = 7
"""Of 11: data ranks cannot share them evenly."""
LOUD = {"init_std": 0.3}
"""Initial weights that prefer some tokens to others by far, so that rounding decides nothing."""
NOTHING = Validation(loss=1.0, targets=1, seconds=0.0, metrics={"perplexity": 2.0})


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("sentences"))


def make_run(layout: Layout, data: Path) -> RunConfig:
    return sentences_run(layout, Path("unused"), data, model=LOUD)


def held_out(config: RunConfig) -> closing[ValidationSet]:
    source = TASKS[config.model.kind].source
    return closing(ValidationSet(source, config.data, samples=SAMPLES, data_rank=0, data_size=1))


def companions_of(config: RunConfig) -> dict[str, bytes]:
    with held_out(config) as validation:
        return validation.companions


# The predictions


def predicted(config: RunConfig, plainly: bool = False) -> tuple[Validation, int, list[str]]:
    """What a model of initial weights says of its examples, in how many passes; and what it says `plainly`."""
    mesh, passes, said = make_mesh(config.parallel), list[int](), list[str]()
    engine = make_engine(config, mesh)
    with ExitStack() as stack:
        examples = open_examples(config, mesh, companions_of(config), stack, lambda told: None)
        assert examples
        validation = examples.add_to(NOTHING, engine.evaluator, lambda: bool(passes.append(1)))
        assert validation
        if plainly:
            said = one_by_one(config, engine.module.eval())
    return validation, len(passes), said


def one_by_one(config: RunConfig, model: nn.Module) -> list[str]:
    """What greedy search finds, written down as one does: sentence by sentence, without padding."""
    found = {}
    with held_out(config) as validation:
        codec = codec_of(config.model, validation.companions.__getitem__)
        for step, batches in enumerate(validation):
            rows = [pair for batch in batches for pair in zip(batch.source_BS, batch.inputs_BT, strict=True)]
            for number, (source_S, inputs_T) in zip(validation.numbers(step), rows, strict=True):
                if number < SAMPLES:
                    found[number] = codec.decode(
                        greedy(model, source_S[source_S != PADDING], int(inputs_T[0]))
                    )
    return [found[number] for number in range(SAMPLES)]


@torch.no_grad()
def greedy(model: nn.Module, source_S: Tensor, end: int) -> list[int]:
    said = [end]
    while len(said) < min(TIMES_SOURCE * len(source_S) + MORE, 24):
        logits_V = model(source_S[None], torch.tensor([said]))[0, -1]
        logits_V[PADDING] = float("-inf")
        said.append(int(logits_V.argmax()))
        if said[-1] == end:
            break
    return said[1:]


@lru_cache
def alone(data: Path) -> tuple[Validation, int, list[str]]:
    (result,) = run_distributed(predicted, 1, make_run(Layout(), data), True)
    return result


def test_predictions_are_those_of_plain_greedy_search(data: Path) -> None:
    validation, passes, plainly = alone(data)
    assert [example.prediction for example in validation.examples] == plainly
    assert len(set(plainly)) == SAMPLES
    assert passes == 23, "the longest goes up to data.max_target_length, of which one is the end"
    assert min(map(len, plainly)) < 12, "some end before"


def test_examples_are_the_first_samples_in_the_order_of_the_data(data: Path) -> None:
    validation, _, _ = alone(data)
    files = [data.parent / f"validation.{side}" for side in ("en", "de")]
    expected = list(zip(*(file.read_text().splitlines()[:SAMPLES] for file in files), strict=True))
    assert [(example.source, example.reference) for example in validation.examples] == expected


def test_scores_are_added_to_the_metrics(data: Path) -> None:
    validation, _, _ = alone(data)
    predictions, references = zip(*((e.prediction, e.reference) for e in validation.examples), strict=True)
    assert validation.metrics == {
        "perplexity": 2.0,
        "bleu": sacrebleu.corpus_bleu(predictions, [references]).score,
        "chrf": sacrebleu.corpus_chrf(predictions, [references]).score,
    }
    assert (validation.loss, validation.targets) == (NOTHING.loss, NOTHING.targets)
    assert validation.seconds > 0


LAYOUTS = [
    Layout(tensor=2),
    Layout(pipeline=2, accumulation=3),
    Layout(data=2, zero=3, accumulation=3),
    slow(Layout(accumulation=6)),
    slow(Layout(data=2, zero=1)),
    slow(Layout(tensor=2, pipeline=2, accumulation=2, checkpointing=True)),
    slow(Layout(pipeline=2, data=2, accumulation=6)),
    slow(Layout(tensor=2, data=2, zero=3)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_predict_alike(layout: Layout, data: Path) -> None:
    expected, passes, _ = alone(data)
    for validation, taken, _ in run_distributed(predicted, layout.world_size, make_run(layout, data)):
        assert validation.examples == expected.examples
        assert validation.metrics == expected.metrics
        assert taken == passes


def in_steps(data: Path) -> RunConfig:
    """Two data ranks, two samples of each at once: the last step has one that is padding."""
    batches = {"micro_batch_size": 2, "global_batch_size": 4}
    return sentences_run(Layout(data=2), Path("unused"), data, model=LOUD, data=batches)


def test_several_steps_predict_as_one(data: Path) -> None:
    expected, _, _ = alone(data)
    for validation, _, _ in run_distributed(predicted, 2, in_steps(data)):
        assert validation.examples == expected.examples


@pytest.mark.slow
def test_bf16_in_a_pipeline(data: Path) -> None:
    """It rounds alike where micro-batches are alike."""
    one, two = (Layout(dtype="bf16", zero=1, accumulation=3, pipeline=pipeline) for pipeline in (1, 2))
    (expected,) = run_distributed(predicted, 1, make_run(one, data))
    for validation, _, _ in run_distributed(predicted, 2, make_run(two, data)):
        assert validation.examples == expected[0].examples


# In a run


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Those of validations, by step; the last one of a step counts."""
    found = [json.loads(line) for line in (folder / "test/metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in found if "validation_loss" in row}


def told_examples(folder: Path) -> dict[int, list[dict[str, str]]]:
    """What TensorBoard's text tab has of each validation, by step."""
    events = EventAccumulator(str(folder / "test/tensorboard"), {"scalars": 0, "tensors": 0}).Reload()
    found: dict[int, list[dict[str, str]]] = {}
    for number in range(1, 6):
        for event in events.Tensors(f"valid/example_{number}/text_summary"):
            lines = event.tensor_proto.string_val[0].decode().split("\n")
            fields = {line[4:16].strip(): line[16:] for line in lines}
            found.setdefault(event.step, []).append(fields)
    return found


def test_rows_and_event_files_of_a_run(data: Path, tmp_path: Path) -> None:
    """All five examples are shown, so their scores can be computed from what is shown."""
    config = sentences_run(Layout(data=2), tmp_path, data, evaluation={"examples": 5})
    assert set(run_distributed(run_to_end, 2, config)) == {"finished"}
    found, shown = rows(tmp_path), told_examples(tmp_path)
    assert list(found) == list(shown) == [4, 8]
    for step, row in found.items():
        predictions, references = ([one[name] for one in shown[step]] for name in ("prediction", "reference"))
        assert len(predictions) == 5
        assert row["validation_bleu"] == sacrebleu.corpus_bleu(predictions, [references]).score
        assert row["validation_chrf"] == sacrebleu.corpus_chrf(predictions, [references]).score
    events = EventAccumulator(str(tmp_path / "test/tensorboard")).Reload()
    drawn = [(event.step, event.value) for event in events.Scalars("valid/chrf")]
    assert drawn == [(step, pytest.approx(row["validation_chrf"])) for step, row in found.items()]
    assert {"valid/bleu", "valid/loss", "valid/perplexity"} <= set(events.Tags()["scalars"])


def test_training_is_the_same_with_and_without_them(data: Path, tmp_path: Path) -> None:
    """To the bit: losses, weights, optimizer, position."""
    layout = Layout(pipeline=2, accumulation=3)
    for name, count in (("with", 7), ("without", 0)):
        config = sentences_run(layout, tmp_path / name, data, evaluation={"examples": count})
        assert set(run_distributed(run_to_end, 2, config)) == {"finished"}
    ours, theirs = (rows(tmp_path / name) for name in ("with", "without"))
    assert [row["validation_loss"] for row in ours.values()] == [
        r["validation_loss"] for r in theirs.values()
    ]
    assert "validation_bleu" in ours[8]
    assert "validation_bleu" not in theirs[8]
    checkpoints = [contents(newest_checkpoint(tmp_path / name)) for name in ("with", "without")]
    assert differences(*checkpoints) == []


def stopped_among_examples(config: RunConfig, rank: int, after: int) -> str:
    """A SIGTERM reaches one rank in the middle of the predictions of the first validation."""
    passes, choose = [], Translations.choose

    def interrupted(self: Translations, outputs: Tensor) -> Tensor:
        passes.append(1)
        if len(passes) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return choose(self, outputs)

    with patch.object(Translations, "choose", interrupted if int(os.environ["RANK"]) == rank else choose):
        return f"{run_to_end(config)} after {len(passes)}"


def test_a_request_to_stop_is_honoured_between_two_passes(data: Path, tmp_path: Path) -> None:
    """And the validation is made up for, with the examples that it would have had."""
    whole, broken_off = (
        sentences_run(Layout(data=2), tmp_path / name, data, model=LOUD) for name in ("whole", "broken off")
    )
    assert set(run_distributed(run_to_end, 2, whole)) == {"finished"}
    outcomes = run_distributed(stopped_among_examples, 2, broken_off, 1, 3)
    assert outcomes == ["preempted after 0", "preempted after 3"]
    assert not rows(tmp_path / "broken off")
    assert set(run_distributed(run_to_end, 2, broken_off)) == {"finished"}
    expected, found = rows(tmp_path / "whole"), rows(tmp_path / "broken off")
    assert list(found) == [4, 8]
    for step in found:
        assert found[step]["validation_chrf"] == expected[step]["validation_chrf"] > 0
    assert told_examples(tmp_path / "broken off") == told_examples(tmp_path / "whole")


# What goes wrong


class Failing(ValidationSet):
    """Its second step cannot be read."""

    def __iter__(self) -> Iterator[list[Batch]]:
        yield next(super().__iter__())
        raise DataError("shard-00000.tar is gone")


def fails_on_one_rank(config: RunConfig) -> str:
    mesh = make_mesh(config.parallel)
    evaluator = make_engine(config, mesh).evaluator
    kind = Failing if mesh.rank == 1 else ValidationSet
    with ExitStack() as stack, patch("pretrain.evaluation.examples.ValidationSet", kind):
        examples = open_examples(config, mesh, companions_of(config), stack, lambda told: None)
        assert examples
        with pytest.raises(DataError, match=r"shard-00000\.tar is gone"):
            examples.add_to(NOTHING, evaluator, lambda: False)
    return "raised"


def test_data_that_fails_on_one_rank_ends_all(data: Path) -> None:
    assert run_distributed(fails_on_one_rank, 2, in_steps(data)) == ["raised"] * 2


def opened_without(config: RunConfig, missing: str, rank: int) -> tuple[bool, list[str]]:
    """One rank's data comes without a tokenizer."""
    mesh, told = make_mesh(config.parallel), list[str]()
    companions = companions_of(config)
    if mesh.rank == rank:
        del companions[missing]
    with ExitStack() as stack:
        return open_examples(config, mesh, companions, stack, told.append) is not None, told


def test_without_a_tokenizer_there_are_none_on_all_ranks(data: Path) -> None:
    config = make_run(Layout(data=2), data)
    told = ["validation goes without examples: there is no target.model beside the data"]
    assert run_distributed(opened_without, 2, config, "target.model", 1) == [(False, told)] * 2


def opened(config: RunConfig) -> tuple[bool, list[str]]:
    told = list[str]()
    with ExitStack() as stack:
        return open_examples(config, make_mesh(config.parallel), {}, stack, told.append) is not None, told


def test_none_where_none_are_asked_for_or_nothing_is_predicted(data: Path, corpus: Path) -> None:
    """They need no tokenizer then."""
    gpt = run_config(Layout(), Path("unused"), corpus)
    assert gpt.evaluation.examples > 0
    for config in (gpt, sentences_run(Layout(), Path("unused"), data, evaluation={"examples": 0})):
        assert run_distributed(opened, 1, config) == [(False, [])]


@pytest.mark.parametrize(
    ("samples", "ranks", "micro", "whole"),
    [(64, 2, 32, 64), (1000, 2, 48, 288), (3, 4, 1, 4), (100, 1, 48, 144)],
)
def test_few_samples_are_dealt_out_to_all_ranks(samples: int, ranks: int, micro: int, whole: int) -> None:
    sizes = {"micro_batch_size": 48, "global_batch_size": 288}
    data = dealt_out(DataConfig(kind="any", sources=({"path": "unused"},), **sizes), samples, ranks)
    assert (data.micro_batch_size, data.global_batch_size) == (micro, whole)
