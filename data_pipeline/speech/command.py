"""recorded speech with transcripts

The command line of `surefoot prepare speech`.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data_pipeline.paths import location_argument, path_argument
from data_pipeline.preparing.command_line import (
    exit_code,
    number_in,
    positive,
    processes,
    report_left_out,
    share,
)
from data_pipeline.shown import CommandLine, shown
from data_pipeline.speech.audio import HIGHEST_STORED_RATE, LOWEST_RATE, AudioForm
from data_pipeline.speech.corpora.corpora import RawCorpora
from data_pipeline.speech.encoding import Spelling
from data_pipeline.speech.manifest import SpeechManifest
from data_pipeline.speech.prepare import Prepared, SpeechSettings, prepare_speech
from data_pipeline.speech.unit_choice import UnitChoice
from data_pipeline.speech.units import LARGEST_COUNT

DESCRIPTION = (
    "Read recorded speech (WAV, FLAC, Ogg), choose units of transcripts, write train and validation shards."
)
FORMATS = {
    "manifest": (
        "FILE",
        "NeMo manifest: JSON lines with audio_filepath, text, and maybe offset, duration, speaker",
    ),
    "librispeech": ("DIR", "folder like LibriSpeech's: ID.flac beside *.trans.txt with a line `ID TEXT`"),
    "kaldi": ("DIR", "data folder of Kaldi: wav.scp (files, no commands), text, and maybe segments, utt2spk"),
    "lhotse": ("FILE", "cuts of lhotse as JSON lines, maybe packed: MonoCuts with one supervision"),
}
"""Format of corpora -> what is named, and help."""


def main(arguments: Sequence[str]) -> int:
    """It runs the command line and returns the exit code."""
    parser = _parser()
    settings = _settings(parser, parser.parse_args(arguments))
    return exit_code(lambda: _report(settings, prepare_speech(settings)))


def _settings(parser: argparse.ArgumentParser, given: argparse.Namespace) -> SpeechSettings:
    train, validation = RawCorpora(tuple(given.corpora)), RawCorpora(tuple(given.validation_corpora))
    if not train:
        parser.error(f"name a corpus with {', '.join(f'--{kind}' for kind in FORMATS)}")
    if given.alphabet and given.units != "characters":
        parser.error("--alphabet is for --units characters; leave one of them")
    return SpeechSettings(
        train=train,
        validation=validation,
        out=given.out,
        form=AudioForm(given.sample_rate, given.max_seconds, given.channel),
        spelling=Spelling(given.lowercase),
        units=UnitChoice(given.units, given.alphabet, given.vocabulary_size),
        frame_seconds=given.frame_seconds,
        left_out_budget=given.left_out_budget,
        validation_fraction=given.validation_fraction,
        workers=given.workers,
        shard_samples=given.shard_samples,
        seed=given.seed,
        overwrite=given.overwrite,
    )


def _report(settings: SpeechSettings, prepared: Prepared | None) -> None:
    if prepared is None:
        print(f"{shown(settings.out)}: complete already, made with the same settings from the same files")
        return
    report_left_out(prepared.left_out)
    for manifest in prepared.manifests:
        print(f"{shown(settings.out / manifest.split)}: {_in_words(manifest)}")
        for line in _done(manifest.split, prepared.summary):
            print(f"  {line}")
    print(_listed(prepared))


def _in_words(manifest: SpeechManifest) -> str:
    """It says what is in a split."""
    return (
        f"{manifest.samples:,} utterances of {manifest.seconds / 3600:.2f} hours at {manifest.sample_rate} Hz, at most "
        f"{manifest.longest_seconds:.2f} s long, with {manifest.unit_total:,} units of {manifest.units.count:,} "
        f"({manifest.units.file}, blank included)"
    )


def _done(split: str, summary: Mapping[str, Any]) -> Iterator[str]:
    """It counts what was done to the utterances of a split, and what is odd about them."""
    for change, count in summary["changes"][split].items():
        yield f"{change}: {count:,}"
    if repeated := summary["repeated"][split]:
        yield f"there already, with the same audio and transcript: {repeated:,}"
    if split == "validation" and (both := summary["in_both"]):
        yield f"in train as well: {both:,}"
    for reason, count in summary["left_out"].get(split, {}).items():
        yield f"left out, since it {reason}: {count:,}"


def _listed(prepared: Prepared) -> str:
    """It says what was read, and what was held out of it."""
    summary = prepared.summary
    read = f"read {summary['utterances']:,} utterances in {summary['audio_bytes']:,} bytes of audio"
    if not (groups := summary["held_out"]):
        return read
    names = ", ".join(groups[:5]) + (f" and {len(groups) - 5:,} more" if len(groups) > 5 else "")
    return f"{read}; held out {names}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(prog="surefoot prepare speech", description=DESCRIPTION)
    add = parser.add_argument
    for prefix, end, target in (
        ("", "", "corpora"),
        ("validation-", ", to validate with", "validation_corpora"),
    ):
        for kind, (metavar, about) in FORMATS.items():
            add(
                f"--{prefix}{kind}",
                dest=target,
                default=[],
                nargs="+",
                action=_CorpusAction,
                const=kind,
                type=location_argument,
                metavar=metavar,
                help=about + end if not prefix else f"the same{end}",
            )
    add("--out", type=path_argument, required=True, metavar="DIR", help="folder to make")
    _add_audio(parser)
    _add_transcripts(parser)
    add(
        "--left-out-budget",
        type=share,
        default=0.01,
        metavar="F",
        help="share of the utterances that may be left out, since they cannot be used (%(default)s)",
    )
    add(
        "--validation-fraction",
        type=share,
        default=0.01,
        metavar="F",
        help="share held out, by whole speakers or where they are unknown recordings, one at least, where no corpora "
        "are given to validate with (%(default)s)",
    )
    add(
        "--workers",
        type=processes,
        default=os.cpu_count(),
        metavar="N",
        help="processes that encode (%(default)s)",
    )
    add(
        "--shard-samples",
        type=positive,
        default=2048,
        metavar="N",
        help="utterances in a shard (%(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="chooses what is held out (%(default)s)")
    add("--overwrite", action="store_true", help="replace a DIR made with other settings or files")
    return parser


def _add_audio(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--sample-rate",
        type=_sample_rate,
        default=16_000,
        metavar="HZ",
        help="resample what has another rate (%(default)s)",
    )
    add(
        "--channel",
        type=_channel,
        metavar="N",
        help="take this channel, from 0, of recordings with several (default: the mean of all)",
    )
    add(
        "--max-seconds",
        type=number_in(0.1, 86_400),
        default=40.0,
        metavar="S",
        help="leave out longer utterances (%(default)g)",
    )


def _add_transcripts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--units",
        type=_units,
        default="characters",
        metavar="characters|pieces|FILE",
        help="units of transcripts: characters, pieces of a tokenizer to be trained, or the units.json or units.model "
        "of other prepared data or a tokenizer.model (%(default)s)",
    )
    add(
        "--alphabet",
        default="",
        metavar="CHARACTERS",
        help="the characters that are units, the space too where words have one between them (default: all of the "
        "train split)",
    )
    add(
        "--vocabulary-size",
        type=_vocabulary_size,
        default=1024,
        metavar="N",
        help="ids of the tokenizer to be trained for --units pieces (%(default)s)",
    )
    add("--lowercase", action="store_true", help="have transcripts in small letters")
    add(
        "--frame-seconds",
        type=number_in(0.001, 1),
        default=0.033,
        metavar="S",
        help="leave out utterances with less audio than this for each unit, and each blank between equal ones: the "
        "time from an output of the model to the next in the fastest audio that it learns from (%(default)g: every "
        "third frame of 10 ms, played at 1.1 times its speed)",
    )


class _CorpusAction(argparse.Action):
    """It collects corpora in the order in which they are named, whatever their formats."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(values, list)
        named = [(str(self.const), value) for value in values]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *named])


def _units(text: str) -> Literal["characters", "pieces"] | Path:
    """It reads the kind of units, or the path of their file."""
    match text:
        case "characters" | "pieces":
            return text
        case _:
            return path_argument(text)


def _sample_rate(text: str) -> int:
    """It reads samples a second, as FLAC can have them."""
    if not LOWEST_RATE <= (rate := int(text)) <= HIGHEST_STORED_RATE:
        raise argparse.ArgumentTypeError(f"{text} is not from {LOWEST_RATE} to {HIGHEST_STORED_RATE}")
    return rate


def _channel(text: str) -> int:
    """It reads the number of a channel."""
    if (channel := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return channel


def _vocabulary_size(text: str) -> int:
    """It reads a number of ids that two bytes hold."""
    if (size := positive(text)) > LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text} is above {LARGEST_COUNT}")
    return size
