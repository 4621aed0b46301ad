"""A TrainEngine takes one optimizer step over micro-batches, with a judge between the last backward and the update.

With and without pipeline the order is the same: forward and backward of all micro-batches, reduction of the
gradients, one reduction of the facts of the step over all ranks, the judge's verdict on them (the same on every
rank, from the same bytes), then the update or not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from data_pipeline.batches import Batch
from parallel.mesh import ParallelMesh
from pretrain.backend.live_state import Tree, uncounted
from pretrain.backend.matrices import local_matrices
from pretrain.backend.pieces import NamedModel, StateSource
from pretrain.backend.schedule import Consult, make_schedule
from pretrain.backend.setup import build_module, initialize, local_layers
from pretrain.backend.transfer import MicroBatch
from pretrain.backend.update_gate import LocalWeight, make_gate
from pretrain.config.run import RunConfig
from pretrain.engine.curvature import Curvature
from pretrain.engine.evaluator import Evaluation, Evaluator, MeasuredObjective
from pretrain.engine.parts import ModelParts
from pretrain.engine.reparametrization import Reparametrization
from pretrain.engine.report import fetched, local_facts, make_report, reduced
from pretrain.engine.sharpness_aware import FirstPass, SharpnessAware
from pretrain.engine.state import EngineState
from pretrain.engine.targets import normalise
from pretrain.models.named import Piece
from pretrain.optim.groups import parameter_groups
from pretrain.optim.layerwise import LayerwiseOptimizer
from pretrain.optim.optimizer import Optimizer, settings_of
from pretrain.probes.probe import Measures, ProbedModel
from pretrain.probes.probes import Probes
from pretrain.probes.row_bound import RowBound, row_bound_applies
from pretrain.probes.weights import Name, Sums, local_sums
from pretrain.runtime.ranges import ranged
from pretrain.step import Action, StepReport, Verdict

Judge = Callable[[StepReport], Verdict]


class TrainEngine:
    """It puts both DeepSpeed engines behind one step."""

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
        self._streams = parts.streams
        objective = MeasuredObjective(parts.objective, parts.validation_loss, parts.metrics)
        self.module = build_module(parts.layers, parts.boundaries, mesh, objective)
        groups = parameter_groups(self.module.parameters(), config.optimizer.weight_decay)
        self.optimizer = optimizer.build(groups)
        optimizer_settings = settings_of(self.optimizer)
        self._engine = initialize(self.module, self.optimizer, settings, mesh)
        self._schedule = make_schedule(self._engine, objective, mesh)
        self._gate = make_gate(self._engine, mesh)
        self._reparametrization = Reparametrization(self.module, mesh, self._gate, optimizer)
        self._sharpness_aware = SharpnessAware(
            config.optimizer.sharpness_aware, mesh, self._gate, self._reparametrization
        )
        self._model = ProbedModel(
            outline=config.model.outline(config.data),
            boundaries=parts.boundaries,
            config=config.probes,
            zero_stage=config.parallel.zero_stage,
            mesh=mesh,
            layers=local_layers(self.module),
            gate=self._gate,
            row_bound=partial(RowBound, config) if row_bound_applies(config) else None,
        )
        named = NamedModel(self._model.outline, list(self._model.layers), mesh)
        if isinstance(self.optimizer, LayerwiseOptimizer):
            self.optimizer.matrices = local_matrices(named, self._gate)
        self._probes = Probes(self._model)
        self._state = EngineState(
            self._engine,
            self.optimizer,
            optimizer_settings,
            self._gate,
            self._reparametrization,
            self._probes,
            named,
            optimizer.counting,
        )
        self.evaluator = Evaluator(self._schedule, objective, mesh)
        self.curvature = Curvature(
            self.module, self._pass_without_update, self._gate, self._reparametrization, mesh
        )

    def step(
        self,
        batches: Sequence[Batch],
        judge: Judge,
        *,
        step: int,
        learning_rate: float,
        interrupted: bool = False,
        full: bool = False,
        digest: int = 0,
    ) -> tuple[StepReport, Verdict]:
        """It takes optimizer step number `step` (from 1) over this rank's micro-batches.

        The update is applied only on PROCEED. `interrupted` tells the other ranks that this one was asked to stop.
        `full` has all probes look, whatever the step's number; it must be the same on all ranks. `digest`, of which
        64 bits count, stands for what this rank has decided so far: the report says whether all have the same.

        Raises:
            BatchesMissing: a rank, not necessarily this one, has no batches.
        """
        with ranged("data"):
            scaled, _ = normalise(self.mesh, batches)
        micro_batches = [(batch.inputs, batch.labels) for batch in scaled]
        twice = self._sharpness_aware.due(step)
        self._probes.begin(step, batches, full=full, twice=twice)
        first = self._first_pass(step, micro_batches) if twice else None
        self._streams.begin_step(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        outcome: list[tuple[StepReport, Verdict]] = []

        def consult(loss: Tensor) -> None:
            with ranged("probes"):
                self._probes.gradients_averaged()
            with ranged("methods"):
                squared_norm = self._reparametrization.squared_norm()
                self._sharpness_aware.put_back()
            with ranged("probes"):
                measured = self._probes.local()
            with ranged("judge"):
                (share, squares), slots = fetched(self.mesh, loss, squared_norm, measured)
                local = local_facts(self.mesh, batches, share, squares, interrupted=interrupted)
                facts, alike = reduced(self.mesh, local, digest)
                report = make_report(
                    facts, self._measures(slots), first, step=step, learning_rate=learning_rate, alike=alike
                )
                verdict = judge(report)
                self._gate.decide(report.gradient_norm, apply=verdict.action is Action.PROCEED)
            with ranged("probes"):
                self._probes.before_update()
            outcome.append((report, verdict))

        self._train(micro_batches, consult)
        report, verdict = outcome[0]
        self._after_update(report, applied=verdict.action is Action.PROCEED)
        return report, verdict

    def _first_pass(self, step: int, batches: Sequence[MicroBatch]) -> FirstPass:
        """It passes through the batch once more, beforehand, and leaves the weights where the loss rises."""
        outcome: list[FirstPass] = []

        def consult(loss: Tensor) -> None:
            self._probes.between_passes()
            with ranged("methods"):
                outcome.append(self._sharpness_aware.ascend(loss))

        self._pass_without_update(step, batches, consult)
        return outcome[0]

    def _pass_without_update(self, step: int, batches: Sequence[MicroBatch], consult: Consult) -> None:
        """It passes through micro-batches with the masks of a step, and changes nothing but what `consult` does."""

        def withhold(loss: Tensor) -> None:
            consult(loss)
            self._gate.decide(0.0, apply=False)

        self._streams.begin_step(step)
        with uncounted(self._engine):
            self._train(batches, withhold)

    def _train(self, batches: Sequence[MicroBatch], consult: Consult) -> None:
        """It passes through micro-batches, and calls `consult` with their loss before the update."""

        def averaged(loss: Tensor) -> None:
            self._gate.gradients_changed()
            consult(loss)

        self._schedule.train(batches, averaged)

    def evaluate(self, batches: Sequence[Batch]) -> Evaluation:
        """It returns the mean loss over the batches of all ranks, and the sums of the metrics."""
        return self.evaluator.evaluate(batches)

    def _measures(self, slots: Tensor) -> Measures:
        """It returns what the probes have found, over all ranks."""
        return self._probes.finish(self.mesh.agree_sum(slots) if len(slots) else slots)

    def _after_update(self, report: StepReport, *, applied: bool) -> None:
        """It does what follows on weights that have moved, or on an update that was withheld."""
        with ranged("probes"):
            self._probes.after_update(report.learning_rate if applied else 0.0)
        if applied:
            clipping = self._engine.gradient_clipping()
            with ranged("methods"):
                self._reparametrization.after_update(report.learning_rate, report.gradient_norm, clipping)

    # What lies outside of a step

    def masters(self) -> Iterator[LocalWeight]:
        """It yields parameters with the weights, fp32, that the optimizer moves: what this rank holds of them."""
        return self._gate.masters()

    def parameter_sums(self) -> dict[Name, Sums]:
        """It returns what this rank adds to the statistics of every parameter's weights (`layer_rows`)."""
        return local_sums(self._model)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """It returns the names of all layers, by index."""
        return self._model.names

    def reset(self) -> None:
        """It is called when weights have been replaced: probes do not compare them with those before."""
        self._probes.reset()

    # The state: `EngineState` tells more of each

    def to_save(self) -> Iterator[Piece]:
        """It yields what this rank writes of weights, buffers and optimizer; references, not copies."""
        return self._state.to_save()

    def scalars(self) -> dict[str, Any]:
        """It returns what goes into a checkpoint beside tensors of the model."""
        return self._state.scalars()

    def fill(self, source: StateSource) -> None:
        """It puts saved state in place, of whatever layout; `complete` comes next. It raises whatever reading does."""
        self._state.fill(source)

    def complete(self, probes: Mapping[str, Any]) -> None:
        """It renews what follows from the state that was filled in, on all ranks together."""
        self._state.complete(probes)

    def state(self) -> Tree:
        """It returns all that training changes on this rank: references, not copies."""
        return self._state.live()

    def restore(self, state: Tree) -> None:
        """It puts a copy of an earlier `state` back in place; all ranks together."""
        self._state.restore(state)

    def checksum(self) -> int:
        """It returns a hash of all bits of `state` that training rests on."""
        return self._state.checksum()
