"""A checkpoint goes from any layout to any other and back: to the bit, and the run goes on as if nothing had changed.

The bounds are those of the layouts themselves (tests/pretrain/engine/test_layouts_agree.py).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoint_run import CheckpointRun
from support.courses import Losses, largest_difference
from support.distributed import run_distributed
from support.training import Layout, slow

from pretrain.checkpoint.manifest import read_manifest
from pretrain.checkpoint.saved_tensors import SavedTensors

STEPS = 20
"""That are compared behind the checkpoint."""
SAVED_AT = 3
FP32, BF16 = (1e-5, 1e-5), (2e-3, 3e-2)
"""Bounds on loss and gradient norm, relative."""

ODD = {"vocabulary_size": 4099}
GPT2 = {**ODD, "positions": "learned"}
LLAMA = {
    **ODD,
    "activation": "swiglu",
    "normalization": "rms_norm",
    "bias": False,
    "tied_embeddings": False,
    "attention": {"num_heads": 8, "num_key_value_heads": 4},
}
MLRA = {"attention": {"kind": "mlra", "rank": 16}}
SHARDED = {"attention": {"kind": "mlra", "rank": 16, "down_projection": "sharded"}}
SIGMA = {"reparametrization": "sigma"}
SGD = {"optimizer": {"kind": "sgd", "learning_rate": 1e-2, "gradient_clipping": 0.5}}
LAMB = {"optimizer": {"kind": "lamb", "learning_rate": 1e-2, "gradient_clipping": 0.5}}
LARS = {"optimizer": {"kind": "lars", "learning_rate": 0.1, "trust_coefficient": 0.1}}


@dataclass(frozen=True)
class Pair:
    """A run in one layout that goes on in another."""

    before: Layout
    after: Layout
    model: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    """What is otherwise in the model afterwards."""
    sections: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] = FP32
    kind: str = "gpt"


PAIRS = {
    "gpt2: one rank to tensor": Pair(Layout(), Layout(tensor=2), GPT2),
    "gpt2: tensor 4 to pipeline 4": Pair(Layout(tensor=4), Layout(pipeline=4, accumulation=3), GPT2),
    "gpt2: ZeRO 3 to tensor and pipeline": Pair(
        Layout(data=2, zero=3), Layout(tensor=2, pipeline=2, accumulation=3), GPT2
    ),
    "llama: pipeline and ZeRO 1 to ZeRO 2": Pair(
        Layout(pipeline=2, data=2, zero=1, accumulation=3), Layout(zero=2), LLAMA
    ),
    "llama: tensor 4 to ZeRO 3": Pair(Layout(tensor=4), Layout(data=2, zero=3), LLAMA),
    "llama: fp32 to bf16": Pair(
        Layout(tensor=2), Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3), LLAMA, bounds=BF16
    ),
    "llama: bf16 without ZeRO to fp32": Pair(
        Layout(dtype="bf16", accumulation=3), Layout(data=2, zero=1), LLAMA, bounds=BF16
    ),
    "llama: bf16 to bf16": Pair(
        Layout(dtype="bf16", tensor=2, zero=1), Layout(dtype="bf16", data=2, zero=3), LLAMA, bounds=BF16
    ),
    "mlra: replicated to ZeRO 1": Pair(Layout(tensor=2), Layout(data=2, zero=1), MLRA),
    "mlra: replicated to sharded": Pair(Layout(tensor=2), Layout(tensor=2), MLRA, SHARDED),
    "mlra: sharded to pipeline": Pair(Layout(tensor=4), Layout(pipeline=2, accumulation=3), SHARDED),
    "sigma: tensor to pipeline": Pair(
        Layout(tensor=2), Layout(pipeline=2, accumulation=3), {**GPT2, **SIGMA}
    ),
    "sigma: grouped, bf16, ZeRO 2 to tensor 4": Pair(
        Layout(dtype="bf16", data=2, zero=2),
        Layout(dtype="bf16", tensor=4, accumulation=3),
        {**LLAMA, **SIGMA},
        bounds=BF16,
    ),
    "sigma: mlra sharded to ZeRO 1": Pair(Layout(tensor=2), Layout(data=2, zero=1), {**SHARDED, **SIGMA}),
    "sgd: tensor to ZeRO 1": Pair(Layout(tensor=2), Layout(data=2, zero=1), GPT2, sections=SGD),
    "lamb: tensor to one rank": Pair(Layout(tensor=2), Layout(), LLAMA, sections=LAMB),
    "lars: ZeRO 1 to pipeline": Pair(
        Layout(data=2, zero=1), Layout(pipeline=2, accumulation=3), {**GPT2, **SIGMA}, sections=LARS
    ),
    "translation: tensor and pipeline to ZeRO 3": Pair(
        Layout(tensor=2, pipeline=2, accumulation=6),
        Layout(data=2, zero=3, accumulation=3),
        {"norm_placement": "deepnorm"},
        kind="translation",
    ),
    "translation: ZeRO 1 to pipeline": Pair(
        Layout(data=2, zero=1),
        Layout(pipeline=2, accumulation=6),
        {"embeddings": "half_shared", "attention": {"kind": "mlra", "rank": 12}, **SIGMA},
        kind="translation",
    ),
    "gpt2: ZeRO 3 with padding to ZeRO 3 with more": Pair(
        Layout(data=3, zero=3), Layout(data=4, zero=3), {"hidden_size": 20, "positions": "learned"}
    ),
    "gpt2: replicas shared out": Pair(Layout(data=4), Layout(tensor=2, data=2, zero=1), GPT2),
}
SHORT = {
    "gpt2: ZeRO 3 to tensor and pipeline",
    "llama: pipeline and ZeRO 1 to ZeRO 2",
    "llama: fp32 to bf16",
    "mlra: replicated to sharded",
    "sigma: tensor to pipeline",
    "lamb: tensor to one rank",
}


def before(folder: Path, pair: Pair) -> tuple[str, Losses]:
    """The run that never changes: its checkpoint, and the steps behind that."""
    run = CheckpointRun(folder, pair.before, pair.sections, pair.model, kind=pair.kind)
    (tag,) = run.save_at(SAVED_AT)
    return str(tag), run.train_to(SAVED_AT + STEPS)


def after(folder: Path, pair: Pair) -> tuple[str, Losses, list[str]]:
    """The run in the other layout: what it saves at once, the steps behind that, what it says."""
    changed = {**pair.model, **pair.changed}
    run = CheckpointRun(folder, pair.after, pair.sections, changed, kind=pair.kind)
    run.resume(run.loader.load_newest(run.engine))
    (tag,) = run.save_at(run.step)
    return str(tag), run.train_to(SAVED_AT + STEPS), run.notes


def back(folder: Path, pair: Pair) -> tuple[str, int]:
    """The run in the first layout, from what the other one has saved: where it came from, and its checksum."""
    run = CheckpointRun(folder, pair.before, pair.sections, pair.model, kind=pair.kind)
    return run.resume(run.loader.load_newest(run.engine)), run.engine.checksum()


@pytest.mark.parametrize("name", [name if name in SHORT else slow(name) for name in PAIRS])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    (tag, course), *_ = run_distributed(before, pair.before.world_size, tmp_path, pair)
    answers = run_distributed(after, pair.after.world_size, tmp_path, pair)
    (other, again, notes), *_ = answers
    assert all(answer[1] == again for answer in answers), "ranks report different numbers"
    if pair.before != pair.after:
        assert "was saved in another layout" in notes[0]
    assert difference(tmp_path / tag, tmp_path / other) == []
    for which, bound in enumerate(pair.bounds):
        assert largest_difference(again, course, which) <= bound
    proofs = read_manifest(tmp_path / tag).checksums
    assert run_distributed(back, pair.before.world_size, tmp_path, pair) == [
        (other, proof) for proof in proofs
    ]


def difference(one: Path, other: Path) -> list[str]:
    """What is not equal to the bit in two checkpoints, whatever their layouts."""
    left, right = (SavedTensors(folder, read_manifest(folder)) for folder in (one, other))
    assert left.names == right.names
    assert left.moments == right.moments
    return [
        f"{kind} of {key}"
        for key in left.names
        for kind in left.kinds(key)
        if not torch.equal(left.read(key, kind).view(torch.int32), right.read(key, kind).view(torch.int32))
    ]
