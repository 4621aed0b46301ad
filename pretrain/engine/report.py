"""The facts of a step come from all ranks; this says what each adds, and makes the report of what they sum up to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.batches import Batch
from parallel.mesh import ParallelMesh
from pretrain.engine.rank_digest import SLOTS, slots_of, unanimous
from pretrain.engine.sharpness_aware import FirstPass
from pretrain.engine.targets import speaks_for_batch, speaks_for_outputs
from pretrain.probes.probe import Measures
from pretrain.step import ASCENDED_LOSS, ASCENT_GRADIENT_NORM, StepReport


@dataclass(frozen=True)
class Facts:
    """A rank contributes these to a report; each sums over all ranks to the global value."""

    loss: float
    squared_norm: float
    samples: float
    tokens: float
    damaged: float
    interrupted: float


def fetched(
    mesh: ParallelMesh, loss: Tensor, squared_norm: Tensor, slots: Tensor
) -> tuple[list[float], Tensor]:
    """It brings to the host what a step reads of the device, and waits for it once: this rank's share of the loss and
    of the squared gradient norm, and the slots of the probes."""
    share = loss.double() / mesh.data.size if speaks_for_outputs(mesh) else squared_norm.new_zeros(())
    numbers = torch.stack((share.to(squared_norm), squared_norm))
    own, slots = torch.cat((numbers, slots)).cpu().split([2, len(slots)])
    return own.tolist(), slots


def local_facts(
    mesh: ParallelMesh, batches: Sequence[Batch], loss: float, squared_norm: float, *, interrupted: bool
) -> Facts:
    """It returns what this rank contributes: its shares of loss and squared gradient norm, and what it counts."""
    counted = batches if speaks_for_batch(mesh) else ()
    return Facts(
        loss=loss,
        squared_norm=squared_norm,
        samples=sum(batch.samples for batch in counted),
        tokens=sum(batch.tokens for batch in counted),
        damaged=sum(len(batch.damaged) for batch in counted),
        interrupted=interrupted,
    )


def reduced(mesh: ParallelMesh, local: Facts, digest: int) -> tuple[Facts, bool]:
    """It sums the facts over all ranks, and says whether all of them have the same digest.

    NaN and inf travel as they are: any of them makes the sum in its place non-finite everywhere. What the probes have
    to say goes in a message of its own: gloo adds in an order that depends on a message's length, and the gradient
    norm, which clips, must not depend by a bit on which probes look.
    """
    own = torch.tensor([*slots_of(digest), *vars(local).values()], dtype=torch.float64)
    sums = mesh.agree_sum(own).tolist()
    return Facts(*sums[SLOTS:]), unanimous(sums[:SLOTS], mesh.world_size)


def make_report(
    facts: Facts,
    measures: Measures,
    first: FirstPass | None,
    *,
    step: int,
    learning_rate: float,
    alike: bool,
) -> StepReport:
    """It makes the report of a step from what was summed over all ranks.

    Of two passes, the `first` has the loss of the weights themselves; the gradient that moves them is the second one's.
    """
    norm = facts.squared_norm**0.5
    numbers = torch.tensor([*(first or ()), facts.loss, norm])  # in fp32, which a norm of many must fit into
    ascent = {ASCENDED_LOSS: facts.loss, ASCENT_GRADIENT_NORM: first.gradient_norm} if first else {}
    return StepReport(
        step=step,
        loss=first.loss if first else facts.loss,
        gradient_norm=norm,
        learning_rate=learning_rate,
        samples=int(facts.samples),
        tokens=int(facts.tokens),
        damaged=int(facts.damaged),
        interrupted=facts.interrupted > 0,
        unanimous=alike,
        passes=2 if first else 1,
        finite=bool(torch.isfinite(numbers).all()),
        measures={**ascent, **measures.scalars},
        histograms=measures.histograms,
    )
