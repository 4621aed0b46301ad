"""Commands that run a model run it in a process alone."""

import pytest
import torch

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")


@pytest.fixture(autouse=True)
def no_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends just after one of gloo's is aborted now and then."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process alone called a collective")

    for name in COLLECTIVES:
        monkeypatch.setattr(torch.distributed, name, refuse)
