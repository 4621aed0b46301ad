"""Snapshots keep a run in host memory: a rollback to one reads no disk, and they are lost with the process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pretrain.backend.host_copy import copied, not_enough_memory, tensors_of
from pretrain.backend.live_state import Tree
from pretrain.checkpoint.lifecycle import by_preference
from pretrain.checkpoint.random_state import capture_random_state
from pretrain.checkpoint.restored import Restored, proof_of
from pretrain.engine.engine import TrainEngine
from pretrain.runtime.agreement import first_problem
from pretrain.step import TrainState


@dataclass(frozen=True)
class Snapshot:
    """It holds a run at the boundary between two steps, as far as this rank has it."""

    state: TrainState
    data: str
    """JSON."""
    watchdog: str
    """JSON."""
    random: dict[str, Any]
    engine: Tree
    checksum: int
    certified: bool = False

    @property
    def step(self) -> int:
        return self.state.step


class SnapshotStore:
    """It holds the last few snapshots, oldest first. All ranks make the same calls and so hold the same steps."""

    def __init__(self, keep: int, horizon: int) -> None:
        """`keep` says how many; with 0 none is ever taken. After `horizon` healthy steps one is certified."""
        self._keep = keep
        self._horizon = horizon
        self._snapshots: list[Snapshot] = []
        self._spare: list[Tree] = []
        """Memory of snapshots that are gone; there are never more than `keep` trees in all."""

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(snapshot.step for snapshot in self._snapshots)

    def take(
        self, engine: TrainEngine, state: TrainState, data: Mapping[str, Any], watchdog: Mapping[str, Any]
    ) -> str:
        """It adds a snapshot, if there is room or one that can go; returns the problem, on all ranks, if a rank has no
        memory."""
        self.drop(after_step=state.step - 1)
        if not self._make_room(state.step):
            return ""
        snapshot, problem = None, ""
        try:
            problem = self._lack(engine)
            if not problem:
                snapshot = self._snapshot(engine, state, data, watchdog)
        except (RuntimeError, MemoryError) as error:  # torch reports a lack of host memory as a RuntimeError
            problem = f"rank {engine.mesh.rank} has no room for a snapshot: {str(error).splitlines()[0]}"
        problem = first_problem(engine.mesh, problem)
        if snapshot is not None and not problem:
            self._snapshots.append(snapshot)
        return problem

    def choose(self, limit_step: int, *, oldest: bool = False) -> Snapshot | None:
        """It returns the newest (or oldest) certified snapshot of at most this step; if none is certified, the newest
        (or oldest) one."""
        found = by_preference(self._snapshots[::-1], lambda one: one.certified, limit_step, oldest=oldest)
        return found[0] if found else None

    def certify(self, step: int) -> None:
        """It marks the snapshot of this step as certified, if there is one."""
        self._snapshots = [
            replace(snapshot, certified=True) if snapshot.step == step else snapshot
            for snapshot in self._snapshots
        ]

    def drop(self, after_step: int) -> None:
        """It forgets the snapshots of later steps."""
        for snapshot in [snapshot for snapshot in self._snapshots if snapshot.step > after_step]:
            self._release(snapshot)

    def restore(self, engine: TrainEngine, snapshot: Snapshot) -> Restored | None:
        """It puts an engine back to a snapshot; later ones are dropped, this one stays.

        It returns None, on all ranks, if the memory of one does not hold what was written there. The snapshot is
        dropped, and the engine must be loaded from elsewhere.
        """
        engine.restore(snapshot.engine)
        self.drop(after_step=snapshot.step)
        sound = engine.checksum() == snapshot.checksum
        proof = proof_of(engine.mesh.gather(snapshot.checksum if sound else None))
        if not proof:
            self._release(snapshot)
            return None
        return Restored(
            run_id="",
            tag=None,
            state=snapshot.state,
            data=json.loads(snapshot.data),
            watchdog=json.loads(snapshot.watchdog),
            random=snapshot.random,
            proof=proof,
        )

    def _snapshot(
        self, engine: TrainEngine, state: TrainState, data: Mapping[str, Any], watchdog: Mapping[str, Any]
    ) -> Snapshot:
        return Snapshot(
            state=state,
            data=json.dumps(data),
            watchdog=json.dumps(watchdog),
            random=capture_random_state(),
            engine=self._copy(engine),
            checksum=engine.checksum(),
        )

    def _lack(self, engine: TrainEngine) -> str:
        """It returns what to say if there is no room."""
        if self._spare:
            return ""
        lack = not_enough_memory(sum(tensor.nbytes for tensor in tensors_of(engine.state())))
        if not lack:
            return ""
        return f"no snapshot: on the host of rank {engine.mesh.rank} {lack}; lower watchdog.memory_keep"

    def _copy(self, engine: TrainEngine) -> Tree:
        copy: Tree = copied(engine.state(), self._spare.pop() if self._spare else None)
        if engine.mesh.device.type == "cuda":
            torch.cuda.synchronize(engine.mesh.device)
        return copy

    def _make_room(self, step: int) -> bool:
        """It lets one go if there are `keep`: the oldest certified one where newer ones leave less than two places to
        others, else the oldest that had the time to be certified and was not. The others stay: without them none would
        ever be certified."""
        if len(self._snapshots) < self._keep:
            return True
        certified = [snapshot for snapshot in self._snapshots if snapshot.certified]
        overdue = [s for s in self._snapshots if not s.certified and step - s.step > self._horizon]
        superseded = certified[: -max(self._keep - 2, 1)]
        for snapshot in [*superseded, *overdue][:1]:
            self._release(snapshot)
        return len(self._snapshots) < self._keep

    def _release(self, snapshot: Snapshot) -> None:
        self._snapshots = [kept for kept in self._snapshots if kept is not snapshot]
        self._spare.append(snapshot.engine)
