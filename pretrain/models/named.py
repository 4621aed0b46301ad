"""The tensors of a module that are its state have names."""

from collections.abc import Iterator

from torch import Tensor, nn


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """It yields the buffers that are state, as `named_buffers` does; the others follow from it."""
    for path, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer
