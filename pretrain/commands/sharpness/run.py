"""`surefoot sharpness` loads a model, takes products with the Hessian of its loss, and prints what they tell."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from parallel.eigenvalues import (
    Eigenvalue,
    Search,
    Trace,
    estimated_trace,
    largest_eigenvalues,
    random_normal,
)
from parallel.mesh import ParallelMesh
from pretrain.commands.held_out import held_out, sound_batches
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable, open_model, told
from pretrain.inference.hessian import LossHessian

SEED = 0
"""Of the random vectors: the same command says the same."""
TOLERANCES = {"fp32": 1e-4, "fp64": 1e-9}
"""Relative residuals: what products in these precisions allow."""
PRODUCTS = 500


class Counted:
    """It counts products, and tells of them on a terminal: one takes as long as some training steps."""

    def __init__(self, hessian: LossHessian) -> None:
        self._hessian = hessian
        self.products = 0

    def __call__(self, vector_P: Tensor) -> Tensor:
        self.products += 1
        if sys.stderr.isatty():
            print(f"\rproduct {self.products}", end="", file=sys.stderr, flush=True)
        return self._hessian(vector_P)


def run(options: argparse.Namespace) -> int:
    """It measures a model and prints the outcome."""
    if options.trace_vectors < 2:
        raise ConfigurationError(
            "--trace-vectors: must be at least 2, since the error is told from their spread"
        )
    checkpoint = open_model(options.model)
    print(f"surefoot sharpness: {told(options.model, checkpoint)}", file=sys.stderr)
    config, dtype = checkpoint.config, "fp64" if options.fp64 else "fp32"
    with held_out(checkpoint, options.data, options.samples, "--data") as (name, data):
        hessian = LossHessian(
            config.model,
            config.data,
            dtype,
            checkpoint.tensors,
            ParallelMesh.alone(),
            sound_batches(checkpoint, data),
        )
    generator = torch.Generator().manual_seed(SEED)
    operator = Counted(hessian)
    start = random_normal(hessian.zeros(), generator)
    top = min(options.top, len(start))
    search = Search(top, min(2 * top + 20, len(start)), TOLERANCES[dtype], PRODUCTS)
    eigenvalues = largest_eigenvalues(operator, start, search)
    trace = estimated_trace(operator, start, options.trace_vectors, generator)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    facts = {
        "data": f"validation data of {name}",
        "targets": round(hessian.targets),
        "loss": hessian.loss(),
        "parameters": len(start),
        "by": "W and gamma" if hessian.reparametrised else "weights",
        "precision": dtype,
        "products": operator.products,
    }
    if options.json:
        print(json.dumps(document(checkpoint, facts, eigenvalues, trace), indent=2))
    else:
        print("\n".join(lines(checkpoint, facts, eigenvalues, trace)))
    return 0


def document(
    checkpoint: Usable, facts: dict[str, Any], eigenvalues: Sequence[Eigenvalue], trace: Trace
) -> dict[str, Any]:
    """It returns the outcome as JSON has it."""
    return {
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.step,
        "certified": checkpoint.certificate is not None,
        **facts,
        "loss_unit": checkpoint.config.model.loss_unit,
        "eigenvalues": [{"value": one.value, "residual": one.residual} for one in eigenvalues],
        "trace": vars(trace),
    }


def lines(
    checkpoint: Usable, facts: dict[str, Any], eigenvalues: Sequence[Eigenvalue], trace: Trace
) -> Iterator[str]:
    """It yields the outcome as people read it."""
    model = checkpoint.config.model
    yield f"{facts['data']}: {facts['targets']:,} {model.targets}, loss {facts['loss']:.6f} {model.loss_unit}"
    yield (
        f"Hessian by {facts['parameters']:,} parameters ({facts['by']}), {facts['precision']}, "
        f"{facts['products']} products"
    )
    for number, one in enumerate(eigenvalues, start=1):
        yield f"eigenvalue {number:<3} {one.value:14.7g}   residual {one.residual:.1e}"
    yield f"trace          {trace.value:14.7g}   standard error {trace.standard_error:.1e}, {trace.vectors} vectors"
