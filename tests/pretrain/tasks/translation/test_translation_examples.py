"""Greedy translation of a batch, pass by pass, with tokens that are given instead of a model's."""

import math

import numpy as np
import pytest
import torch

from data_pipeline.text.tokenizer import train_tokenizer
from data_pipeline.translation.batch import PADDING, PairBatch
from data_pipeline.translation.collate import padded
from parallel.mesh import ParallelMesh
from pretrain.tasks.examples import Example
from pretrain.tasks.translation.examples import MORE, TIMES_SOURCE, Translations
from pretrain.tasks.translation.text import PairCodec

SIZE, PADDED = 300, 320
"""Of the vocabulary; what is behind is padding."""
TOKENIZER = train_tokenizer(["a small cat", "eine kleine Katze", "ein großer Hund"] * 5, SIZE)
END = TOKENIZER.end_of_text
CAT, DOG = TOKENIZER.encode("Katze"), TOKENIZER.encode("Hund")


def make_task(alone: ParallelMesh, longest: int = 100) -> Translations:
    return Translations(PairCodec(lambda name: TOKENIZER.model, (SIZE, SIZE)), SIZE, longest, alone.tensor)


def make_batch(*pairs: tuple[str, str]) -> PairBatch:
    """It pads pairs; an empty one is damaged."""
    ids = [[TOKENIZER.encode(text) if text else [] for text in side] for side in zip(*pairs, strict=True)]
    sources, targets = ([[*row, END] if row else [] for row in side] for side in ids)
    begun = [[END, *row[:-1]] if row else [] for row in targets]
    source_BS, inputs_BT, targets_BT = (
        torch.from_numpy(padded([np.array(row, int) for row in side])) for side in (sources, begun, targets)
    )
    return PairBatch(source_BS, inputs_BT, targets_BT, (targets_BT != PADDING).float())


def logits(*tokens: int) -> torch.Tensor:
    """It returns those of a model that says these tokens, (B, 3, V); all but the last position say something else."""
    logits_BTV = torch.zeros(len(tokens), 3, PADDED)
    logits_BTV[:, :2, 7] = 9.0
    logits_BTV[range(len(tokens)), 2, list(tokens)] = 5.0
    logits_BTV[..., SIZE:] = float("-inf")
    return logits_BTV


def test_tokens_are_said_until_all_have_ended(alone: ParallelMesh) -> None:
    """What has ended, or is damaged, takes part in no more passes."""
    batch = make_batch(("cat", "Katze"), ("", ""), ("dog", "Hund"))
    passes = make_task(alone).passes([batch])
    ((source_BS, said_BT),) = next(passes)
    assert source_BS.tolist() == batch.source_BS[[0, 2]].tolist()
    assert said_BT.tolist() == [[END], [END]]
    ((_, said_BT),) = passes.send([torch.tensor([CAT[0], DOG[0]])])
    assert said_BT.tolist() == [[END, CAT[0]], [END, DOG[0]]]
    ((source_BS, said_BT),) = passes.send([torch.tensor([CAT[1], END])])
    assert source_BS.tolist() == batch.source_BS[[0]].tolist()
    assert said_BT.tolist() == [[END, *CAT[:2]]]
    with pytest.raises(StopIteration) as ended:
        passes.send([torch.tensor([END])])
    assert ended.value.value == [
        Example("cat", "Katze", TOKENIZER.decode(CAT[:2])),
        None,
        Example("dog", "Hund", TOKENIZER.decode(DOG[:1])),
    ]


@pytest.mark.parametrize(("longest", "most"), [(100, TIMES_SOURCE * 4 + MORE - 1), (9, 8)])
def test_translation_that_does_not_end_is_ended(alone: ParallelMesh, longest: int, most: int) -> None:
    batch = make_batch(("abc", "Katze"))
    assert batch.source_BS.shape == (1, 4), "one for each letter, and the end"
    passes = make_task(alone, longest).passes([batch])
    next(passes)
    for _ in range(most - 1):
        passes.send([torch.tensor(CAT[:1])])
    with pytest.raises(StopIteration) as ended:
        passes.send([torch.tensor(CAT[:1])])
    assert ended.value.value[0].prediction == TOKENIZER.decode(CAT[:1] * most)


def test_micro_batch_that_has_ended_goes_along_with_one_row(alone: ParallelMesh) -> None:
    """A pipeline and divided weights need as many micro-batches in every pass."""
    two = make_batch(("cat", "Katze"), ("dog", "Hund"))
    passes = make_task(alone).passes([two, two])
    next(passes)
    passes.send([torch.tensor([END, END]), torch.tensor([9, 9])])
    (_, ended_BT), (_, going_BT) = passes.send([torch.tensor([11]), torch.tensor([9, 9])])
    assert ended_BT.shape == (1, 2)
    assert going_BT.shape == (2, 3)


def test_padding_alone_takes_one_pass(alone: ParallelMesh) -> None:
    """Other ranks may have more."""
    passes = make_task(alone).passes([make_batch(("", ""))])
    assert len(next(passes)) == 1
    with pytest.raises(StopIteration) as ended:
        passes.send([torch.tensor([9])])
    assert ended.value.value == [None]


def test_likeliest_token_behind_the_last_is_chosen(alone: ParallelMesh) -> None:
    assert make_task(alone).choose(logits(4, END, SIZE - 1)).tolist() == [4, END, SIZE - 1]


def test_padding_is_never_chosen(alone: ParallelMesh) -> None:
    before = logits(PADDING, 4)
    before[0, 2, 5] = 4.0
    kept = before.clone()
    assert make_task(alone).choose(before).tolist() == [5, 4]
    assert torch.equal(before, kept)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_ends_a_translation(alone: ParallelMesh, value: float) -> None:
    broken = logits(4, 4)
    broken[0] = value
    assert make_task(alone).choose(broken).tolist() == [END, 4]


def test_description_has_the_signatures(alone: ParallelMesh) -> None:
    told = make_task(alone).description
    assert "bleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in told
    assert "chrf nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:" in told
