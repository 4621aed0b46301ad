"""Blocks are compiled: torch.compile makes one graph of all blocks that are alike, whatever the depth of the model.

What it makes is guarded by the shapes of weights and inputs and by settings of a block, not by which block it is. Seeds
and tables of positions come as inputs, so that new ones do not call for another graph.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]


class Compiler:
    """It calls methods of modules compiled, and as they are where that is not possible."""

    def __init__(self, backend: str = "inductor") -> None:
        """`backend` is torch.compile's."""
        self._backend = backend
        self._compiled: dict[Function, Function] = {}
        self._failed: set[Function] = set()

    def problem(self, device: torch.device) -> str:
        """It tries a small function, forward and backward; returns what speaks against compiling here, if anything."""
        x = torch.linspace(-1, 1, 64, device=device, requires_grad=True)
        try:
            torch.compile(_trial, backend=self._backend, fullgraph=True)(x).backward()
        except Exception as error:  # whatever a compiler of another machine raises
            return in_one_line(error)
        return ""

    def call(self, function: Function, module: nn.Module, *inputs: Any) -> Tensor:
        """It calls `function`, a method as its class has it, of a module, compiled.

        Should that fail, a warning says so, once, and it runs as it is.
        """
        if function in self._failed:
            return function(module, *inputs)
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, backend=self._backend, fullgraph=True)
        try:
            return self._compiled[function](module, *inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._failed.add(function)
            name = f"{type(module).__name__}.{function.__name__}"
            warnings.warn(f"model.compile = true: {name} runs uncompiled: {in_one_line(error)}", stacklevel=2)
            return function(module, *inputs)


def hooked(modules: Sequence[nn.Module]) -> bool:
    """It tells whether a module has hooks that its forward pass would call. A graph has no modules, and calls none."""
    return any(module._forward_pre_hooks or module._forward_hooks for module in modules)


def let_vary(tensors: Sequence[Tensor | None], dimensions: int) -> None:
    """It has one graph serve these tensors whatever the sizes of their first dimensions, but for sizes of 1."""
    for tensor in tensors:
        if tensor is not None:
            for dimension in range(min(dimensions, tensor.dim())):
                torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def in_one_line(error: BaseException) -> str:
    """It returns the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _trial(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x).square().sum()
