"""One number of updates goes to wherever an optimizer counts them: a checkpoint may go from torch's AdamW to apex's."""

import pytest
import torch

from pretrain.backend.pieces import set_updates, updates_of
from pretrain.optim.optimizer import CountedIn


def adamw(updates: int) -> tuple[torch.optim.Optimizer, torch.Tensor]:
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for _ in range(updates):
        weight.grad = torch.ones(3)
        optimizer.step()
    return optimizer, weight


def test_updates_of_torch_are_counted() -> None:
    assert updates_of(adamw(0)[0]) == 0
    assert updates_of(adamw(3)[0]) == 3


@pytest.mark.parametrize("where", ["tensors", "groups", "nothing"])
@pytest.mark.parametrize("before", [0, 500])
def test_they_stand_where_the_optimizer_looks_and_nowhere_else(where: CountedIn, before: int) -> None:
    optimizer, weight = adamw(0)
    optimizer.param_groups[0]["step"] = before
    set_updates(optimizer, where, [weight], 7)
    assert ("step" in optimizer.param_groups[0]) == (where == "groups")
    assert bool(optimizer.state) == (where == "tensors")
    assert updates_of(optimizer) == (0 if where == "nothing" else 7)
    optimizer.state.clear()
    set_updates(optimizer, where, [weight], 0)
    assert updates_of(optimizer) == 0


def test_torch_goes_on_from_them_as_from_its_own() -> None:
    ours, weight = adamw(3)
    theirs, other = adamw(0)
    set_updates(theirs, "tensors", [other], updates_of(ours))
    for name in ("exp_avg", "exp_avg_sq"):
        theirs.state[other][name] = ours.state[weight][name].clone()
    with torch.no_grad():
        other.copy_(weight)
    for optimizer, moved in ((ours, weight), (theirs, other)):
        moved.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(weight, other)
