"""Micro-batches come to a GPU one ahead: the next one is on its way while the device computes with the last.

From memory that the operating system may move, a copy would have the host wait until the device has come to it. So
tensors are pinned, and copied on a stream of their own, which waits for nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.runtime.ranges import ranged

MicroBatch = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Inputs of the first layer, labels of the objective."""


class _Coming(NamedTuple):
    batch: MicroBatch
    arrived: torch.cuda.Event


class DeviceCopies:
    """It yields micro-batches on a device; on a CPU as they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
        """It yields them in order. The stream that is current then may use a micro-batch at once."""
        if self._stream is None:
            yield from batches
            return
        coming: _Coming | None = None
        for batch in batches:
            following = self._send(batch, self._stream)
            if coming:
                yield self._receive(coming)
            coming = following
        if coming:
            yield self._receive(coming)

    def _send(self, batch: MicroBatch, stream: torch.cuda.Stream) -> _Coming:
        with ranged("data"), torch.cuda.stream(stream):
            inputs, labels = (tuple(map(self._copy, part)) for part in batch)
        return _Coming((inputs, labels), stream.record_event())

    def _copy(self, tensor: Tensor) -> Tensor:
        """Pinned memory that is let go of here serves nobody else until the copy is done: torch sees to that."""
        return tensor if tensor.is_cuda else tensor.pin_memory().to(self._device, non_blocking=True)

    def _receive(self, coming: _Coming) -> MicroBatch:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(coming.arrived)
        for part in coming.batch:
            for tensor in part:
                tensor.record_stream(current)  # memory of the other stream, in use on this one
        return coming.batch
