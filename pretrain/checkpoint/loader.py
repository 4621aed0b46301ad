"""A checkpoint gets back into a run here: all ranks load the same one, or none.

Nothing is unpickled before its bytes have been compared with the manifest, and what was loaded must have the checksum
of what was saved. A damaged checkpoint is set aside, and the next best one is tried.
"""

from collections.abc import Iterable
from functools import partial

from data_pipeline.parsing import read_whole
from data_pipeline.shown import shown
from pretrain.checkpoint.compatibility import Compatibility
from pretrain.checkpoint.folder import CheckpointFolder
from pretrain.checkpoint.lifecycle import CONDEMNED, QUARANTINED, Candidates
from pretrain.checkpoint.manifest import Manifest, other_format, read_manifest
from pretrain.checkpoint.rank_files import damage
from pretrain.checkpoint.restored import Restored
from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.transfer import complete, fill
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError, Unreadable
from pretrain.runtime.agreement import first_problem, from_first


class CheckpointLoader:
    """It loads checkpoints that fit the run. All ranks make the same calls."""

    def __init__(self, folder: CheckpointFolder, compatibility: Compatibility) -> None:
        self.folder = folder
        self._mesh = folder.mesh
        self._compatibility = compatibility

    def load_newest(
        self, engine: TrainEngine, *, sealed: bool = False, afresh: bool = False
    ) -> Restored | None:
        """It loads the newest sound checkpoint, certified or not.

        It returns None if the run has never completed one, as far as can be seen here or the caller knows (`sealed`).
        Condemned ones are passed over; where there are none but those, and with `afresh`, it returns None too: the run
        was taken back to something that was never on disk.

        Raises:
            CheckpointError: there were checkpoints, but none is sound, or the newest one does not fit this run.
        """
        found = self._look_around()
        if restored := self._load_first(engine, found.sealed):
            return restored
        damaged = self.folder.on_first(lambda: any(self.folder.path.glob(f"*{QUARANTINED}")))
        if damaged or ((sealed or found.condemned) and not (afresh and found.condemned)):
            way_out = "repair one"
            if found.condemned:
                way_out += f", go on from a condemned one (--resume {found.condemned[0]} --force-condemned)"
            raise CheckpointError(
                f"{self.folder.path}: no usable checkpoint is left, and the run does not start from scratch by itself; "
                f"{way_out}, or choose another run.name to begin anew"
            )
        return None

    def load_preferred(self, engine: TrainEngine, limit_step: int) -> Restored:
        """It loads what a rollback to at most this step prefers, into an engine that may have trained; if that is
        damaged, what comes next.

        Raises:
            CheckpointError: no sound one is left.
        """
        found = self._look_around()
        if restored := self._load_first(engine, found.preferred(limit_step)):
            return restored
        raise CheckpointError(
            f"{self.folder.path}: no usable checkpoint of at most step {limit_step} is left"
        )

    def load(self, engine: TrainEngine, tag: Tag) -> Restored:
        """It loads this checkpoint; if that is damaged, what a rollback to its step prefers.

        Raises:
            CheckpointError: no sound one is left.
        """
        return self._load_first(engine, [tag]) or self.load_preferred(engine, tag.step)

    def load_tag(self, engine: TrainEngine, name: str, *, allow_condemned: bool = False) -> Restored:
        """It loads the checkpoint that a user asks for, and condemns the later ones, which the run leaves behind by
        that.

        Raises:
            CheckpointError: there is no such checkpoint, it is condemned and not allowed to be, it is damaged, or it
                does not fit this run.
        """
        found = self._look_around()
        tag, path = Tag.parse(name), self.folder.path
        if tag is None or tag not in (*found.sealed, *found.condemned):
            there = ", ".join(map(str, found.sealed)) or "none"
            raise CheckpointError(f"{path}: no checkpoint {shown(name)}; there are: {there}")
        if tag in found.condemned and not allow_condemned:
            mark = path / name / CONDEMNED
            why = self.folder.on_first(lambda: read_whole(mark).decode(errors="backslashreplace").strip())
            raise CheckpointError(f"{path / name}: is condemned ({shown(why)}); --force-condemned loads it")
        restored = self._load_first(engine, [tag])
        if restored is None:
            raise CheckpointError(f"{path / name}: is damaged and was set aside; choose another one")
        self.folder.reinstate(tag)
        return restored

    def _look_around(self) -> Candidates:
        """It does what a crash may have left undone, and returns what there is then."""
        found = self.folder.candidates()
        if found.sealed or found.condemned:
            self.folder.on_first(self.folder.update_latest)
        for tag in found.torn:
            self.folder.report(f"checkpoint {tag} was never completed and is ignored")
        return found

    def _load_first(self, engine: TrainEngine, tags: Iterable[Tag]) -> Restored | None:
        """It loads the first sound one of these; damaged ones are set aside."""
        for tag in tags:
            folder = self.folder.of(tag)
            if other := self.folder.on_first(partial(other_format, folder)):
                raise CheckpointError(other)
            manifest, problem = from_first(self._mesh, partial(read_manifest, folder))
            if manifest is not None:
                if reason := self._compatibility.reason(manifest):
                    raise CheckpointError(f"{folder} {reason}")
                restored, problem = self._load_sound(engine, tag, manifest)
                if restored is not None:
                    return restored
            self.folder.set_aside(tag, problem)
        return None

    def _load_sound(self, engine: TrainEngine, tag: Tag, manifest: Manifest) -> tuple[Restored | None, str]:
        """It loads a checkpoint into the engine; nothing of it is parsed before all of it is what was sealed."""
        folder, mesh = self.folder.of(tag), self._mesh
        differences = self._compatibility.differences(manifest)
        same = not differences
        if problem := first_problem(mesh, damage(folder, manifest, mesh.rank, mesh.world_size)):
            return None, problem
        outline = self._compatibility.outline
        state, damaged, unreadable = None, "", ""
        try:
            state = fill(engine, folder, manifest, outline, same=same)
        except Unreadable as error:
            unreadable = str(error)
        except CheckpointError as error:
            damaged = str(error)
        # What all of its bytes speak for is not set aside because a disk or a device has no more to give.
        if problem := first_problem(mesh, unreadable):
            raise CheckpointError(f"{problem}; nothing is known against the checkpoint")
        if (problem := first_problem(mesh, damaged)) or state is None:
            return None, problem
        restored, problem = complete(engine, tag, manifest, state, differences)
        # Ranks read for very different times; what comes next has the short timeout of the control group.
        if problem := first_problem(mesh, problem and f"{folder}: {problem}"):
            return None, problem
        if not same:
            self.folder.report(f"checkpoint {tag} was saved in another layout ({differences}): converted")
        self.folder.size = manifest.total_bytes
        return restored, ""
