"""Candidates come to a certificate here: a horizon of healthy steps passes, then their bytes are read again."""

from collections.abc import Iterable
from dataclasses import dataclass

from pretrain.checkpoint.snapshots import SnapshotStore
from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.writer import CheckpointWriter, Damaged, NotCertified, Verification
from pretrain.config.run import RunConfig
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, record
from pretrain.step import TrainState
from pretrain.watchdog.watchdog import Watchdog

RETRY_STEPS = 64
"""Steps after which what the disk had no room for is tried again."""
BACKGROUND_STEPS = 8
"""Steps that a thread has for what takes long on disk; then the run waits for it. Not "until it is done": what a run
does must not depend on how fast a disk was."""


@dataclass(frozen=True)
class PendingCertificate:
    """This candidate has proven healthy, and its bytes are being read again."""

    verification: Verification
    step: int
    """At which that was begun."""

    @property
    def tag(self) -> Tag:
        return self.verification.tag


class Certifier:
    """It certifies candidates on disk and in host memory. All ranks make the same calls."""

    def __init__(
        self,
        config: RunConfig,
        writer: CheckpointWriter,
        snapshots: SnapshotStore,
        watchdog: Watchdog,
        ledger: RunLedger,
    ) -> None:
        self._watched = config.watchdog.enabled
        self._ends_at = config.ends_at
        self._writer = writer
        self._snapshots = snapshots
        self._watchdog = watchdog
        self._ledger = ledger
        self._candidates: dict[int, Tag | None] = {}
        """Step -> tag on disk, of what is neither certified nor given up; none: in host memory alone."""
        self._retry_at: dict[int, int] = {}
        """Step of a candidate whose certificate could not be written -> the step at which it is tried again."""
        self._pending: list[PendingCertificate] = []

    def resume(self, step: int) -> None:
        """It awaits certificates for the checkpoints that an earlier session has left, up to this step; also for one
        whose certificate the ledger has not heard of."""
        history = self._ledger.history
        known = history.certified | history.refused
        for tag in self._writer.folder.sealed():
            if tag.step <= step and str(tag) not in known:
                self._candidates[tag.step] = tag

    def add_checkpoint(self, tag: Tag) -> None:
        """It awaits a certificate for a checkpoint; that stands for a snapshot of its step as well."""
        self._candidates[tag.step] = tag

    def add_snapshot(self, step: int) -> None:
        """It awaits a certificate for a snapshot, unless there is a checkpoint of its step."""
        self._candidates.setdefault(step, None)

    def drop(self, after_step: int) -> None:
        """It gives up the candidates of later steps."""
        self._candidates = {step: tag for step, tag in self._candidates.items() if step <= after_step}
        self._retry_at = {step: again for step, again in self._retry_at.items() if step <= after_step}
        self._pending = [one for one in self._pending if one.tag.step <= after_step]

    def verify_due(self, state: TrainState) -> tuple[int, ...]:
        """It returns the steps of the candidates that have proven healthy; after the last step, of all on disk that
        nothing speaks against."""
        if not self._watched:
            return ()
        ended = self._ends_at(state) and not self._watchdog.health.doubt(state.step)
        proven = self._watchdog.health.proven
        return tuple(
            step
            for step, tag in sorted(self._candidates.items())
            if (proven(step, state.step) and state.step >= self._retry_at.get(step, 0)) or (ended and tag)
        )

    def tell_doubt(self, state: TrainState) -> None:
        """It says, after the last step, why the checkpoint of that is not certified, if it is not."""
        doubt = self._watchdog.health.doubt(state.step) if self._watched else ""
        tag = self._candidates.get(state.step)
        if self._ends_at(state) and tag is not None and doubt:
            self._ledger.append(record(Kind.UNPROVEN, state, tag=str(tag), reason=doubt))

    def start_verify(self, state: TrainState) -> list[str]:
        """It gives up those that are due and have done harm, certifies the others in memory at once, and has those on
        disk read again.

        It returns what has kept candidates from being read.
        """
        problems = []
        for step in self.verify_due(state):
            tag, retried = self._candidates.pop(step), self._retry_at.pop(step, None)
            if retried and tag not in self._writer.folder.sealed():
                continue  # retention has not waited
            if self._watchdog.health.damaged(step):
                if tag is not None:
                    self._ledger.append(record(Kind.REFUSED, state, tag=str(tag)))
                continue
            self._snapshots.certify(step)
            if tag is None:
                self._ledger.append(record(Kind.CERTIFIED, state, tag=None, horizon=state.step - step))
                continue
            try:
                self._pending.append(PendingCertificate(self._writer.start_verify(tag), state.step))
            except NotCertified as error:
                problems.append(self._try_later(tag, state, error))
        return problems

    def certificates_due(self, step: int | None = None) -> tuple[PendingCertificate, ...]:
        """It returns what is being read again; with `step` what must be read by then."""
        return tuple(one for one in self._pending if step is None or step >= one.step + BACKGROUND_STEPS)

    def finish(self, state: TrainState, due: Iterable[PendingCertificate]) -> list[str]:
        """It certifies those that were read again and are sound; returns what has kept sound ones from it."""
        problems = []
        for one in due:
            self._pending.remove(one)
            tag, horizon = one.tag, one.step - one.tag.step
            try:
                self._writer.finish_certify(one.verification, horizon)
            except Damaged as error:
                self._ledger.append(record(Kind.QUARANTINED, state, tag=str(tag), reason=str(error)))
            except NotCertified as error:
                problems.append(self._try_later(tag, state, error))
            else:
                self._ledger.append(record(Kind.CERTIFIED, state, tag=str(tag), horizon=horizon))
        return problems

    def _try_later(self, tag: Tag, state: TrainState, error: NotCertified) -> str:
        """It puts a candidate off, since nothing is wrong with the candidate itself, and returns what to say."""
        self._candidates[tag.step] = tag
        self._retry_at[tag.step] = state.step + RETRY_STEPS
        return f"checkpoint {tag} could not be certified now: {error}"
