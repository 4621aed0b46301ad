"""Snapshots in host memory: back to them and on is the same as before, to the bit, in every layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.distributed import run_distributed
from support.runs import differences
from support.steps import train
from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed

from pretrain.backend.host_copy import copied, tensors_of
from pretrain.backend.live_state import checksum
from pretrain.checkpoint.snapshots import SnapshotStore
from pretrain.step import TrainState

LAYOUTS = [
    Layout(accumulation=3),
    Layout(dtype="bf16", zero=1),
    Layout(tensor=2),
    Layout(pipeline=2, accumulation=3),
    *(Layout(data=2, zero=stage) for stage in range(4)),
    *(Layout(dtype="bf16", data=2, zero=stage) for stage in range(4)),
    Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3),
]
SIGMA = {"reparametrization": "sigma"}


def there_and_back(layout: Layout, model: dict[str, Any], start: int) -> tuple[list[str], bool, list[int]]:
    """`start` steps, a snapshot, 3 steps, restore, the 3 again: what differs, whether the proof held, and checksums."""
    config = make_config(layout, **model)
    engine = make_engine(config, make_mesh(config.parallel))
    tier = SnapshotStore(2, 0)
    train(engine, config, 1, start)
    assert tier.take(engine, TrainState(step=start), {"position": 5}, {"sum": 0.25}) == ""
    before = engine.checksum()
    course = train(engine, config, start + 1, start + 3)
    end = copied(engine.state())
    snapshot = tier.choose(start)
    assert snapshot is not None
    restored = tier.restore(engine, snapshot)
    checksums = [before, engine.checksum(), snapshot.checksum]
    again = train(engine, config, start + 1, start + 3)
    changed = differences(copied(engine.state()), end) + differences(again, course)
    sound = restored is not None and (restored.data, restored.watchdog) == ({"position": 5}, {"sum": 0.25})
    return changed, sound, checksums


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_same_steps_again_give_the_same_bits(layout: Layout) -> None:
    for changed, sound, checksums in run_distributed(there_and_back, layout.world_size, layout, {}, 2):
        assert changed == []
        assert sound
        assert len(set(checksums)) == 1


@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(dtype="bf16", data=2, zero=2)], ids=str)
def test_the_state_of_reparametrised_layers_comes_back(layout: Layout) -> None:
    for changed, sound, _ in run_distributed(there_and_back, 2, layout, SIGMA, 2):
        assert changed == []
        assert sound


@pytest.mark.parametrize("layout", [Layout(), Layout(data=2, zero=3)], ids=str)
def test_a_snapshot_from_before_the_first_update(layout: Layout) -> None:
    """There are no moments to write over, and those that there are must go."""
    for changed, _, _ in run_distributed(there_and_back, layout.world_size, layout, {}, 0):
        assert changed == []


def twice_and_damaged(layout: Layout) -> tuple[list[str], bool, tuple[int, ...]]:
    """Back to one snapshot twice; then to one in which a bit has flipped on rank 1."""
    config = make_config(layout, **SIGMA)
    engine = make_engine(config, make_mesh(config.parallel))
    tier = SnapshotStore(2, 0)
    train(engine, config, 1, 1)
    tier.take(engine, TrainState(step=1), {}, {})
    ends = []
    for _ in range(2):
        snapshot = tier.choose(1)
        assert snapshot is not None
        assert tier.restore(engine, snapshot)
        train(engine, config, 2, 3)
        ends.append(copied(engine.state()))
    if engine.mesh.rank == 1:
        snapshot.engine["weights"][0].view(torch.int32).view(-1)[3] ^= 1 << 20
    refused = tier.restore(engine, snapshot) is None
    return differences(*ends), refused, tier.steps


def test_a_snapshot_serves_twice_and_a_damaged_one_is_refused_by_all_ranks() -> None:
    for changed, refused, steps in run_distributed(twice_and_damaged, 2, Layout(data=2)):
        assert changed == []
        assert refused
        assert steps == ()


def memory_over_time(layout: Layout) -> tuple[set[int], set[int]]:
    """Addresses of all tensors in the tier, when it is full for the first time and after many more snapshots."""
    config = make_config(layout)
    engine = make_engine(config, make_mesh(config.parallel))
    tier = SnapshotStore(2, 0)

    def addresses() -> set[int]:
        trees = [snapshot.engine for snapshot in tier._snapshots] + tier._spare
        return {tensor.data_ptr() for tensor in tensors_of(trees)}

    for step in range(1, 10):
        train(engine, config, step, step)
        tier.take(engine, TrainState(step=step), {}, {})
        if step == 2:
            full = addresses()
        if step == 5:
            tier.drop(after_step=0)
    return full, addresses()


def test_memory_is_used_again() -> None:
    ((full, later),) = run_distributed(memory_over_time, 1, Layout(dtype="bf16"))
    assert later == full


class FakeEngine:
    """One number, on one rank."""

    def __init__(self) -> None:
        self.mesh = self
        self.rank = 0
        self.device = torch.device("cpu")
        self.weight = torch.zeros(3)

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def state(self) -> dict[str, Any]:
        return {"weights": [self.weight]}

    def restore(self, state: dict[str, Any]) -> None:
        self.weight.copy_(state["weights"][0])

    def checksum(self) -> int:
        return checksum(self.state())


@contextmanager
def tier_with(keep: int, *steps: int, horizon: int = 25) -> Iterator[tuple[Any, SnapshotStore]]:
    engine: Any = FakeEngine()
    tier = SnapshotStore(keep, horizon)
    for step in steps:
        engine.weight.fill_(step)
        tier.take(engine, TrainState(step=step), {}, {})
    yield engine, tier


def test_newest_prefers_certified_ones_within_the_limit() -> None:
    with tier_with(4, 10, 20, 30, 40) as (engine, tier):
        assert tier.choose(35) == tier._snapshots[2]
        tier.certify(20)
        tier.certify(77)
        snapshot = tier.choose(35)
        assert snapshot is not None
        assert snapshot.step == 20
        assert snapshot.certified
        assert tier.choose(15) == tier._snapshots[0]
        assert tier.choose(9) is None
        tier.certify(30)
        oldest = tier.choose(35, oldest=True)
        assert oldest is not None
        assert oldest.step == 20
        tier.restore(engine, snapshot)
        assert engine.weight.tolist() == [20.0] * 3
        assert tier.steps == (10, 20)


def test_none_are_kept_if_none_are_wanted() -> None:
    with tier_with(0, 10, 20) as (_, tier):
        assert tier.steps == ()


def test_what_ripens_stays_and_what_is_superseded_or_overdue_goes() -> None:
    with tier_with(3, 10, 20, 30, horizon=25) as (engine, tier):

        def take(step: int) -> tuple[int, ...]:
            tier.take(engine, TrainState(step=step), {}, {})
            return tier.steps

        assert take(35) == (10, 20, 30), "10 may yet be certified"
        assert take(40) == (20, 30, 40), "10 was not certified in time"
        tier.certify(20)
        assert take(45) == (20, 30, 40), "the only certified one stays, whatever its age"
        tier.certify(30)
        assert take(50) == (30, 40, 50)


def test_from_four_on_an_older_certified_one_is_kept_to_go_deeper() -> None:
    with tier_with(4, 10, 20, 30, 40, horizon=15) as (engine, tier):
        for step in (50, 60):
            tier.certify(step - 30)
            tier.certify(step - 20)
            tier.take(engine, TrainState(step=step), {}, {})
        assert tier.steps == (30, 40, 50, 60)
        assert [snapshot.certified for snapshot in tier._snapshots] == [True, True, False, False]


@settings(deadline=None)
@given(
    keep=st.integers(1, 5),
    every=st.integers(1, 10),
    horizon=st.integers(1, 60),
    count=st.integers(1, 60),
)
def test_once_there_is_a_certified_one_there_always_is(
    keep: int, every: int, horizon: int, count: int
) -> None:
    """In a healthy run with two slots or more, and it is no older than it must be."""
    engine: Any = FakeEngine()
    tier, certified = SnapshotStore(keep, horizon), False
    for step in range(1, count * every + 1):
        tier.certify(step - horizon)
        certified |= any(snapshot.certified for snapshot in tier._snapshots)
        if step % every == 0:
            tier.take(engine, TrainState(step=step), {}, {})
        assert len(tier.steps) + len(tier._spare) <= keep
        assert list(tier.steps) == sorted(set(tier.steps))
        newest = tier.choose(step)
        if keep >= 2 and certified:
            assert newest is not None
            assert newest.certified
            assert newest.step >= step - 2 * (horizon + every)


def test_a_rank_without_room_costs_all_ranks_the_snapshot() -> None:
    with tier_with(2, 10) as (engine, tier):

        def state() -> Any:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore")

        engine.state = state
        assert "no room for a snapshot" in tier.take(engine, TrainState(step=20), {}, {})
        assert tier.steps == (10,)


# What the proof rests on


@settings(deadline=None)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False), min_size=2, max_size=6, unique_by=lambda x: x.hex()
    ),
    data=st.data(),
)
def test_a_checksum_tells_exchanged_and_changed_tensors(values: list[float], data: st.DataObject) -> None:
    tensors = [torch.tensor([value] * data.draw(st.integers(1, 5))) for value in values]
    whole = checksum({"weights": tensors})
    first, second = data.draw(st.permutations(range(len(values))))[:2]
    exchanged = list(tensors)
    exchanged[first], exchanged[second] = exchanged[second], exchanged[first]
    assert checksum({"weights": exchanged}) != whole
    changed = copied(tensors)
    place = data.draw(st.integers(0, len(changed[first]) - 1))
    changed[first].view(torch.int32)[place] ^= 1 << data.draw(st.integers(0, 31))
    assert checksum({"weights": changed}) != whole


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_a_checksum_does_not_depend_on_where_a_tensor_lies(dtype: torch.dtype) -> None:
    base = torch.arange(23).to(dtype)
    for start in range(9):
        part = base[start : start + 13]
        assert checksum({"weights": part}) == checksum({"weights": part.clone()})
    assert checksum({"weights": base[:3]}) != checksum({"weights": base[1:4]})


def test_copies_share_nothing_and_write_over_only_what_fits() -> None:
    tree = {"a": [torch.ones(2), (torch.zeros(3, dtype=torch.bfloat16), 4)], "b": {"c": torch.tensor(2.0)}}
    first = copied(tree)
    assert differences(first, tree) == []
    tree["a"][0].add_(1)
    assert first["a"][0].tolist() == [1.0, 1.0]
    addresses = [tensor.data_ptr() for tensor in tensors_of(first)]
    other = {"a": [torch.ones(2) * 5, (torch.zeros(4), 4)], "b": {"c": torch.tensor(3.0)}, "d": None}
    second = copied(other, first)
    assert differences(second, other) == []
    reused = [
        tensor.data_ptr() == address for tensor, address in zip(tensors_of(second), addresses, strict=True)
    ]
    assert reused == [True, False, True]


def probed_and_not() -> tuple[bool, int, int]:
    config = make_config(Layout())
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    engine.step(make_batches(config, mesh, 1), proceed, step=1, learning_rate=1e-3)
    remembered = bool(engine.scalars()["probes"]["shift"])
    before = engine.checksum()
    engine.complete({})
    return remembered, before, engine.checksum()


def test_a_checksum_is_not_of_what_probes_remember() -> None:
    """A run that is resumed with a probe switched off has the same weights."""
    ((remembered, before, after),) = run_distributed(probed_and_not, 1)
    assert remembered
    assert before == after
