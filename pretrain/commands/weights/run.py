"""`surefoot weights` reads a checkpoint tensor by tensor and describes each."""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from data_pipeline.shown import shown
from pretrain.checkpoint.saved_tensors import SavedTensors
from pretrain.checkpoint.sealed import open_sealed
from pretrain.checkpoint.tensor_file import NAMES
from pretrain.models.named import WEIGHT

SHOWN_DIGITS = 16
"""Of a SHA-256, for people."""


@dataclass(frozen=True)
class Described:
    """It describes one tensor."""

    name: str
    kind: str
    """`weight`, or what the optimizer keeps of it, such as `exp_avg`."""
    shape: tuple[int, ...]
    dtype: str
    norm: float | None
    """Euclidean, summed in float64; none where a value is not finite."""
    sha256: str
    """Of the values as they are in memory, row by row, little-endian: the same in every layout."""


def run(options: argparse.Namespace) -> int:
    """It prints a line a tensor, or one JSON object."""
    checkpoint = open_sealed(options.model)
    print(f"surefoot weights: {shown(checkpoint.folder)}", file=sys.stderr)
    found = described(checkpoint.tensors, moments=options.moments)
    if options.json:
        tensors = [asdict(one) for one in found]
        print(json.dumps({"checkpoint": str(checkpoint.folder), "tensors": tensors}, indent=1))
        return 0
    width = max((len(shown(name)) for name in checkpoint.tensors.names), default=0)
    for one in found:
        shape = " x ".join(map(str, one.shape)) or "1"
        kind = "" if one.kind == WEIGHT else f"  {shown(one.kind)}"
        norm = "not finite" if one.norm is None else f"{one.norm:.6g}"
        print(
            f"{shown(one.name):{width}}  {shape:>14}  {one.dtype:4}  {norm:>12}  {one.sha256[:SHOWN_DIGITS]}{kind}"
        )
    return 0


def described(saved: SavedTensors, *, moments: bool) -> Iterator[Described]:
    """It describes all tensors in the order of the model; one at a time is in memory."""
    for name in saved.names:
        for kind in saved.kinds(name) if moments else (WEIGHT,):
            tensor = saved.read(name, kind)
            digest = hashlib.sha256(
                tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            ).hexdigest()
            yield Described(name, kind, tuple(tensor.shape), NAMES[tensor.dtype], norm_of(tensor), digest)


def norm_of(tensor: Tensor) -> float | None:
    """It returns the Euclidean norm; none where it is not finite. Rows are widened one block at a time."""
    blocks = tensor.reshape(-1).split(2**22)
    norm = math.sqrt(sum(block.double().square().sum().item() for block in blocks))
    return norm if math.isfinite(norm) else None
