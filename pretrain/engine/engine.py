"""TrainEngine: one optimizer step over micro-batches, with a judge between the last backward and the update.

With and without pipeline the order is the same: forward and backward of all micro-batches, reduction of the
gradients, one reduction of the facts of the step over all ranks, the judge's verdict on them (the same on every
rank, from the same bytes), then the update or not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import Tensor

from data_pipeline.batches import Batch
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from parallel.rng import RandomStreams
from pretrain.backend.host_copy import HostCopies
from pretrain.backend.live_state import Tree, checksum, copied, live_state, restore_state
from pretrain.backend.setup import Objective, build_module, initialize, local_layers, quiet
from pretrain.backend.update_gate import LocalWeight, make_gate
from pretrain.config.run import RunConfig
from pretrain.engine.rank_digest import SLOTS, slots_of, unanimous
from pretrain.engine.reparametrization import Reparametrization
from pretrain.optim.groups import parameter_groups
from pretrain.optim.optimizer import Optimizer, settings_of
from pretrain.probes.probe import Measures, ProbedModel
from pretrain.probes.probes import Probes
from pretrain.probes.weights import Name, Sums, local_sums
from pretrain.step import Action, StepReport, Verdict

Judge = Callable[[StepReport], Verdict]


@dataclass(frozen=True)
class ModelParts:
    """What is trained: layers and where stages begin, the objective, and the random streams of the layers."""

    layers: Sequence[LayerSpec]
    boundaries: Sequence[int]
    objective: Objective
    streams: RandomStreams


@dataclass(frozen=True)
class SavedFiles:
    """What this rank has of a checkpoint."""

    paths: tuple[Path, ...]
    """Written."""
    deferred: Mapping[Path, object]
    """Copies in host memory that are to be written, good until the next save."""
    failure: Exception | None


@dataclass(frozen=True)
class _Facts:
    """Local contributions to a report; each sums over all ranks to the global value."""

    loss: float
    squared_norm: float
    samples: float
    tokens: float
    damaged: float
    interrupted: float


class BatchesMissing(Exception):
    """A rank came to a step without batches: its data failed. Raised on all ranks alike, before any computation."""


class TrainEngine:
    """Both DeepSpeed engines behind one step."""

    def __init__(
        self,
        parts: ModelParts,
        mesh: ParallelMesh,
        settings: Mapping[str, Any],
        optimizer: Optimizer[Any],
        config: RunConfig,
    ) -> None:
        """`settings` is the DeepSpeed JSON; `optimizer` makes this rank's; probes read `config`."""
        self.mesh = mesh
        self._objective = parts.objective
        self._streams = parts.streams
        self.module = build_module(parts.layers, parts.boundaries, mesh, parts.objective)
        groups = parameter_groups(self.module.parameters(), config.optimizer.weight_decay)
        self.optimizer = optimizer.build(groups)
        self._settings = settings_of(self.optimizer)
        self._engine: DeepSpeedEngine = initialize(self.module, self.optimizer, settings, mesh)
        self._copies = HostCopies()
        self._gate = make_gate(self._engine, mesh)
        self._reparametrization = Reparametrization(self.module, mesh, self._gate, optimizer)
        self._model = ProbedModel(config, mesh, local_layers(self.module), self._gate)
        self._probes = Probes(self._model)
        self._run = self._run_pipeline if mesh.pipeline.size > 1 else self._run_in_order

    def step(
        self,
        batches: Sequence[Batch],
        judge: Judge,
        *,
        step: int,
        learning_rate: float,
        interrupted: bool = False,
        dense: bool = False,
        digest: int = 0,
    ) -> tuple[StepReport, Verdict]:
        """Take optimizer step number `step` (from 1) over this rank's micro-batches.

        The update is applied only on PROCEED. `interrupted` tells the other ranks that this one was asked to stop.
        `dense` has all probes look, whatever the step's number; it must be the same on all ranks. `digest`, of which
        64 bits count, stands for what this rank has decided so far: the report says whether all have the same.

        Raises:
            BatchesMissing: a rank, not necessarily this one, has no batches.
        """
        normalised, _ = self._normalise(batches)
        self._streams.begin_step(step)
        self._probes.begin(step, batches, dense=dense)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        outcome: list[tuple[StepReport, Verdict]] = []

        def consult(loss: Tensor) -> None:
            self._probes.gradients_averaged()
            local = self._local_facts(batches, loss, interrupted)
            facts, alike, measures = self._reduce(local, digest)
            report = _report(facts, measures, step, learning_rate, alike)
            verdict = judge(report)
            self._gate.decide(report.gradient_norm, apply=verdict.action is Action.PROCEED)
            self._probes.before_update()
            outcome.append((report, verdict))

        self._engine.train()
        self._run(normalised, consult)
        report, verdict = outcome[0]
        applied = verdict.action is Action.PROCEED
        self._probes.after_update(learning_rate if applied else 0.0)
        if applied:
            clipping = self._engine.gradient_clipping()
            self._reparametrization.after_update(learning_rate, report.gradient_norm, clipping)
        return report, verdict

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Mean loss over the batches of all ranks, and the sum of target weights that it is a mean of."""
        scaled, weight = self._normalise(batches)
        self._engine.eval()
        with torch.no_grad():
            loss = (
                self._evaluate_pipeline(scaled)
                if self.mesh.pipeline.size > 1
                else self._evaluate_in_order(scaled)
            )
        facts = torch.tensor([self._share_of_loss(loss)], dtype=torch.float64)
        return float(self.mesh.agree_sum(facts)), weight

    # Running micro-batches

    def _run_in_order(self, batches: Sequence[Batch], consult: Callable[[Tensor], None]) -> None:
        total = torch.zeros((), device=self.mesh.device)
        for position, batch in enumerate(batches):
            loss = self._forward(batch)
            self._engine.backward(loss)
            total += loss.detach()
            if position == len(batches) - 1:
                consult(total / len(batches))
            self._engine.step()

    def _run_pipeline(self, batches: Sequence[Batch], consult: Callable[[Tensor], None]) -> None:
        engine = self._engine
        assert isinstance(engine, PipelineEngine)
        update = PipelineEngine._INSTRUCTION_MAP[schedule.OptimizerStep]

        def judged_update(engine: PipelineEngine, **kwargs: Any) -> None:
            total = engine.total_loss if self.mesh.pipeline.last else torch.zeros(())
            consult(total / len(batches))
            update(engine, **kwargs)

        # The schedule looks instructions up through the instance, so the class stays as it is.
        engine._INSTRUCTION_MAP = {**PipelineEngine._INSTRUCTION_MAP, schedule.OptimizerStep: judged_update}
        with quiet():
            engine.train_batch(_pairs(batches))

    def _evaluate_in_order(self, batches: Sequence[Batch]) -> Tensor:
        losses = [self._forward(batch) for batch in batches]
        return torch.stack(losses).mean()

    def _evaluate_pipeline(self, batches: Sequence[Batch]) -> Tensor:
        losses = self._engine.eval_batch(
            _pairs(batches),
            reduce_output=None,
            bcast_loss=False,
            num_micro_batches=len(batches),
            compute_loss=True,
        )
        return torch.stack(losses).mean() if self.mesh.pipeline.last else torch.zeros(())

    def _forward(self, batch: Batch) -> Tensor:
        device = self.mesh.device
        outputs = self._engine(*(x.to(device, non_blocking=True) for x in batch.inputs))
        return self._objective(outputs, tuple(x.to(device, non_blocking=True) for x in batch.labels))

    # Facts

    def _normalise(self, batches: Sequence[Batch]) -> tuple[list[Batch], float]:
        """Scale target weights so that DeepSpeed's mean over micro-batches and data ranks is the mean per target.

        Returns the scaled batches and the sum of all weights, over all data ranks.
        """
        own = sum(batch.target_weight for batch in batches) if self._speaks_for_batch else 0.0
        sums = self.mesh.agree_sum(torch.tensor([own, not batches], dtype=torch.float64), patient=True)
        weight, missing = sums.tolist()
        if missing:
            raise BatchesMissing
        factor = len(batches) * self.mesh.data.size / weight if weight else 0.0
        return [batch.scaled(factor) for batch in batches], weight

    @property
    def _speaks_for_batch(self) -> bool:
        """One rank of each replica counts its samples."""
        return self.mesh.model.first

    def _share_of_loss(self, loss: Tensor) -> float:
        """Contribution to the global mean loss: the last stage has the loss, its tensor ranks all the same one."""
        if not (self.mesh.pipeline.last and self.mesh.tensor.first):
            return 0.0
        return loss.item() / self.mesh.data.size

    def _squared_gradient_norm(self) -> float:
        """This rank's share of it, once gradients are those of the parameters."""
        gammas = self._reparametrization.pull_back()
        return (self._gate.squared_norm() + gammas).item()

    def _local_facts(self, batches: Sequence[Batch], loss: Tensor, interrupted: bool) -> _Facts:
        counted = batches if self._speaks_for_batch else ()
        return _Facts(
            loss=self._share_of_loss(loss),
            squared_norm=self._squared_gradient_norm(),
            samples=sum(batch.samples for batch in counted),
            tokens=sum(batch.tokens for batch in counted),
            damaged=sum(len(batch.damaged) for batch in counted),
            interrupted=interrupted,
        )

    def _reduce(self, local: _Facts, digest: int) -> tuple[_Facts, bool, Measures]:
        """Sum facts and the slots of the probes over all ranks; also whether all have the same digest.

        In two messages: gloo adds in an order that depends on a message's length, and the gradient norm, which
        clips, must not depend by a bit on which probes look. NaN and inf travel as they are: any of them makes the
        sum in its place non-finite everywhere.
        """
        own = self.mesh.agree_sum(
            torch.tensor([*slots_of(digest), *vars(local).values()], dtype=torch.float64)
        ).tolist()
        slots = self._probes.local()
        measures = self._probes.finish(self.mesh.agree_sum(slots) if len(slots) else slots)
        return _Facts(*own[SLOTS:]), unanimous(own[:SLOTS], self.mesh.world_size), measures

    # What lies outside of a step

    def masters(self) -> Iterator[LocalWeight]:
        """Parameters with the weights, fp32, that the optimizer moves: what this rank holds of them."""
        return self._gate.masters()

    def parameter_sums(self) -> dict[Name, Sums]:
        """What this rank adds to the statistics of every parameter's weights (`layer_rows`)."""
        return local_sums(self._model)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of all layers, by index."""
        return self._model.names

    def forget(self) -> None:
        """To be called when weights have been replaced: probes do not compare them with those before."""
        self._probes.forget()

    # Checkpoint files

    def save(self, checkpoints: Path, tag: str, *, deferred: bool = False) -> SavedFiles:
        """Write this rank's share of weights and optimizer to `checkpoints/tag`, or copy it to be written later.

        Nothing is raised for a full disk.
        """
        guard = self._engine.checkpoint_engine
        guard.begin(self._copies if deferred else None)
        with quiet():
            self._engine.save_checkpoint(str(checkpoints), tag=tag, save_latest=False)
        if self.mesh.device.type == "cuda":
            torch.cuda.synchronize(self.mesh.device)
        return SavedFiles(tuple(guard.written), guard.deferred, guard.failure)

    def load(self, checkpoints: Path, tag: str) -> None:
        """Read weights and optimizer of a checkpoint that has been verified."""
        with quiet():
            path, _ = self._engine.load_checkpoint(str(checkpoints), tag=tag, load_lr_scheduler_states=False)
        # The file has the settings of then; the configuration may have others now.
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        self._gate.set_clipping()
        self.forget()
        assert path is not None, "a verified checkpoint lacks files that DeepSpeed looks for"

    def extra_state(self) -> dict[str, Any]:
        """What is in none of DeepSpeed's files; of tensors and plain values."""
        return {
            "reparametrization": self._reparametrization.state_dict(),
            "probes": self._probes.state_dict(),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """To be called after `load`."""
        self._reparametrization.load_state_dict(state["reparametrization"])
        self._probes.load_state_dict(state.get("probes", {}))

    # State in memory

    def state(self) -> Tree:
        """All that training changes on this rank: references, not copies, to be taken between two steps."""
        return {**live_state(self._engine, self.optimizer), "extra": self.extra_state()}

    def restore(self, state: Tree) -> None:
        """Put a copy of an earlier `state` back in place; all ranks together."""
        restore_state(self._engine, self.optimizer, state)
        self.forget()
        self.load_extra_state(copied(state["extra"]))

    def checksum(self) -> int:
        """Of all bits of `state` that training rests on, on this rank, in [0, 2^63); probes may come and go."""
        state = self.state()
        return checksum({**state, "extra": {**state["extra"], "probes": {}}})


def _pairs(batches: Sequence[Batch]) -> Any:
    """Micro-batches as PipelineEngine takes them: (inputs of the first stage, labels of the last)."""
    return iter(
        [(batch.inputs if len(batch.inputs) > 1 else batch.inputs[0], batch.labels) for batch in batches]
    )


def _report(facts: _Facts, measures: Measures, step: int, learning_rate: float, alike: bool) -> StepReport:
    norm = facts.squared_norm**0.5
    total = torch.tensor([facts.loss, norm])
    return StepReport(
        step=step,
        loss=facts.loss,
        gradient_norm=norm,
        learning_rate=learning_rate,
        samples=int(facts.samples),
        tokens=int(facts.tokens),
        damaged=int(facts.damaged),
        interrupted=facts.interrupted > 0,
        unanimous=alike,
        finite=bool(torch.isfinite(total).all()),
        measures=measures.scalars,
        histograms=measures.histograms,
    )
