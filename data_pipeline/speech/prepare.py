"""Recorded speech becomes a prepared dataset: units, train and validation splits, complete or not at all."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.preparing.progress import progress
from data_pipeline.preparing.record import make_once, make_record
from data_pipeline.preparing.source_files import LeftOut, check_apart
from data_pipeline.preparing.workers import worked_in_order
from data_pipeline.preparing.workspace import TargetExists
from data_pipeline.shown import shown
from data_pipeline.speech.audio import AudioForm
from data_pipeline.speech.budget import Budget
from data_pipeline.speech.corpora.corpora import Corpora, RawCorpora
from data_pipeline.speech.corpora.utterance import Utterance
from data_pipeline.speech.encoding import Encoded, Encoding, Spelling, TranscriptRefused
from data_pipeline.speech.manifest import SpeechManifest
from data_pipeline.speech.recordings import Recordings, Seen, check_unchanged
from data_pipeline.speech.splits import UtteranceWriter
from data_pipeline.speech.unit_choice import UnitChoice
from data_pipeline.speech.units import Units
from data_pipeline.text.prepare import fraction
from data_pipeline.text.splits import Split

PORTION = 8
"""Utterances that a worker gets at once."""


@dataclass(frozen=True)
class SpeechSettings:
    """It says what to prepare, and how."""

    train: RawCorpora
    validation: RawCorpora
    out: Path
    form: AudioForm
    spelling: Spelling
    units: UnitChoice
    frame_seconds: float
    """Audio that an utterance has for each unit, and each blank between equal ones, at least."""
    left_out_budget: float
    """Share of the utterances that may be left out."""
    validation_fraction: float
    """Share of the utterances that is held out, where no corpus is named for validation."""
    workers: int
    shard_samples: int
    seed: int
    overwrite: bool

    @property
    def splits(self) -> tuple[Split, ...]:
        """They are those that are made."""
        return ("train", "validation") if self.validation or self.validation_fraction else ("train",)


@dataclass(frozen=True)
class Prepared:
    """It tells what was written, with the manifest of train first, and what was left out."""

    manifests: tuple[SpeechManifest, ...]
    left_out: tuple[LeftOut, ...]
    summary: Mapping[str, Any]
    """What was read, changed and left out, by split."""


def prepare_speech(settings: SpeechSettings) -> Prepared | None:
    """It makes `settings.out`, and returns None when it is there already, made with these settings from these files.

    Raises DataError, and TargetExists when `out` holds something else.
    """
    work = _Work(settings)
    files = [file.path for corpora in work.corpora.values() for file in corpora.found.files]
    return make_once(
        settings.out,
        make_record("speech", files, {**work.deciding(), "audio": work.listing.audio}),
        work.make,
        overwrite=settings.overwrite,
        summary=lambda prepared: prepared.summary,
    )


@dataclass(frozen=True)
class _Listing:
    """It is what the lists of all corpora tell."""

    utterances: Counter[Split]
    groups: Counter[str]
    """Utterances of each speaker or recording of the corpora for training."""
    audio: Mapping[str, Any]
    """What is the same while no file of audio is another."""
    recordings: Recordings
    """In the order of the lists, each once for all utterances of it that follow each other."""


class _Work:
    """It has what all passes over the corpora need."""

    def __init__(self, settings: SpeechSettings) -> None:
        self._settings = settings
        self.corpora: dict[Split, Corpora] = {"train": Corpora(settings.train)}
        if settings.validation:
            self.corpora["validation"] = Corpora(settings.validation)
        for corpora in self.corpora.values():
            check_apart(settings.out, corpora.found)
        self.listing = self._listed()
        for split in self.corpora:
            if not self.listing.utterances[split]:
                raise DataError(f"the corpora of the {split} split list no utterance")
        self._held_out = self._chosen_to_hold_out()
        self._choice = settings.units.deciding()

    def deciding(self) -> dict[str, Any]:
        """It returns the settings that decide the output."""
        settings = self._settings
        return {
            "corpora": [kind for raw in (settings.train, settings.validation) for kind, _ in raw.named],
            "validation_corpora": len(settings.validation.named),
            "form": asdict(settings.form),
            "spelling": asdict(settings.spelling),
            "units": self._choice,
            "frame_seconds": settings.frame_seconds,
            "left_out_budget": settings.left_out_budget,
            "validation_fraction": settings.validation_fraction,
            "shard_samples": settings.shard_samples,
            "seed": settings.seed,
        }

    def make(self, folder: Path) -> Prepared:
        """It fills an empty folder."""
        units = self._units()
        (folder / units.file).write_bytes(units.content)
        return self._write_splits(folder, units)

    def _listed(self) -> _Listing:
        """It reads all lists once, and looks at the files that they name. Raises TargetExists for one in `out`."""
        utterances: Counter[Split] = Counter()
        groups: Counter[str] = Counter()
        recordings, folders, last = Recordings(), set(), None
        digest, size = hashlib.sha256(), 0
        for split, corpora in self.corpora.items():
            for utterance in corpora.utterances():
                utterances[split] += 1
                if split == "train":
                    groups[utterance.group] += 1
                if utterance.audio and utterance.audio != last:
                    last = utterance.audio
                    folders.add(last.parent)
                    state = recordings.look(last)
                    size += state[0]
                    digest.update(os.fsencode(last) + f"\t{state}\n".encode())
        target = Path(os.path.realpath(self._settings.out))
        for folder in folders:
            if Path(os.path.realpath(folder)).is_relative_to(target):
                raise TargetExists(
                    f"{shown(self._settings.out)}: holds audio that is read, in {shown(folder)}; choose another --out"
                )
        audio = {"bytes": size, "sha256": digest.hexdigest()}
        return _Listing(utterances, groups, audio, recordings)

    def _chosen_to_hold_out(self) -> Collection[str]:
        """It returns the groups for validation: whole ones, so that nobody is heard on both sides.

        Raises DataError where there is but one.
        """
        settings, groups = self._settings, self.listing.groups
        if settings.validation or not settings.validation_fraction:
            return ()
        if len(groups) < 2:
            raise DataError(
                f"all {groups.total():,} utterances are of one speaker or recording, so none can be held out for "
                "validation; name corpora with --validation-manifest and the like, or set --validation-fraction 0"
            )
        return held_out(groups, settings.validation_fraction, settings.seed)

    def _utterances(self, title: str) -> Iterator[tuple[Split, Utterance]]:
        """It reads all lists once, and yields utterances with their split."""
        with progress(title, self.listing.utterances.total(), in_bytes=False) as advance:
            for split, corpora in self.corpora.items():
                for utterance in corpora.utterances():
                    yield ("validation" if utterance.group in self._held_out else split), utterance
                    advance(1)

    def _budget(self) -> Budget:
        return Budget(self._settings.left_out_budget, self.listing.utterances.total())

    def _units(self) -> Units:
        """It looks at all transcripts, and chooses units by those of the train split. Raises DataError where too many
        cannot be used."""
        budget = self._budget()

        def texts() -> Iterator[str]:
            for split, utterance in self._utterances("looking through"):
                try:
                    text = self._settings.spelling.of(utterance.text)
                except TranscriptRefused as error:
                    budget.leave_out(split, LeftOut(f"{utterance.name} ({utterance.place})", str(error)))
                    continue
                if split == "train":
                    yield text

        units = self._settings.units.of(texts())
        if self._choice.get("digest", units.digest) != units.digest:
            raise DataError(f"{shown(self._settings.units.kind)}: has changed while it was read")
        return units

    def _write_splits(self, folder: Path, units: Units) -> Prepared:
        settings, budget = self._settings, self._budget()
        changes: dict[Split, Counter[str]] = {split: Counter() for split in settings.splits}
        encoding = Encoding(settings.form, settings.spelling, units, settings.frame_seconds)
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(UtteranceWriter(folder, split, settings.shard_samples))
                for split in settings.splits
            }
            for (splits, heard), results in worked_in_order(encoding, self._portions(), settings.workers):
                for recording in heard:
                    check_unchanged(recording)
                for split, result in zip(splits, results, strict=True):
                    if isinstance(result, Encoded):
                        writers[split].add(result)
                        changes[split].update(result.changes)
                    else:
                        budget.leave_out(split, result)
            for split, writer in writers.items():
                if not writer.samples:
                    raise DataError(f"the {split} split has no utterance{budget.in_words(split)}")
            manifests = tuple(
                writer.finish(units, settings.form.sample_rate, settings.frame_seconds)
                for writer in writers.values()
            )
        train, *validation = writers.values()
        summary = {
            "utterances": self.listing.utterances.total(),
            "audio_bytes": self.listing.audio["bytes"],
            "held_out": sorted(self._held_out),
            "changes": {split: dict(counts) for split, counts in changes.items()},
            "left_out": budget.counts,
            "repeated": {split: writer.repeated for split, writer in writers.items()},
            "in_both": sum(len(train.digests & other.digests) for other in validation),
        }
        unread = (entry for corpora in self.corpora.values() for entry in corpora.found.left_out)
        return Prepared(manifests, (*unread, *budget.left_out), summary)

    def _portions(self) -> Iterator[tuple[tuple[Sequence[Split], Collection[Seen]], Sequence[Utterance]]]:
        """It yields utterances, with their splits and recordings, in portions that are worth a trip to another
        process."""
        seen, last, was = None, None, self.listing.recordings.again()
        splits: list[Split] = []
        utterances: list[Utterance] = []
        heard: dict[Seen, None] = {}
        for split, utterance in self._utterances("encoding"):
            if utterance.audio and utterance.audio != last:
                last = utterance.audio
                seen = was(last)
            if utterance.audio and seen:
                heard[seen] = None
            splits.append(split)
            utterances.append(utterance)
            if len(splits) == PORTION:
                yield (splits, heard), utterances
                splits, utterances, heard = [], [], {}
        if splits:
            yield (splits, heard), utterances


def held_out(groups: Mapping[str, int], share: float, seed: int) -> frozenset[str]:
    """It chooses whole groups by chance, of at most `share` of all utterances together, but at least the smallest."""
    left = share * sum(groups.values())
    chosen = []
    order = sorted(groups, key=lambda group: fraction(f"validation/{seed}", group))
    for group in order:
        if groups[group] <= left:
            chosen.append(group)
            left -= groups[group]
    return frozenset(chosen or [min(order, key=groups.__getitem__)])
