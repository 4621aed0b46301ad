"""Recordings of single digits become data to prepare: as they are, and joined to strings of digits of one speaker.

    python benchmarks/spoken_digits.py --archive fsdd.tar --out data/digits-raw
    surefoot prepare speech --manifest data/digits-raw/strings.jsonl \
        --validation-manifest data/digits-raw/validation.jsonl --sample-rate 8000 --out data/digits
    surefoot prepare speech --manifest data/digits-raw/single.jsonl --validation-fraction 0 --sample-rate 8000 \
        --units data/digits/units.json --out data/digits-single

The archive is that of the Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset): 8 kHz,
`DIGIT_SPEAKER_INDEX.wav`, of which index 0 to 4 are the usual test split. No recording of the test split is a part of
any string to learn from. Under --out lie the recordings and manifests, a JSON object a line:

    single.jsonl            recordings to learn from
    strings.jsonl           strings of them
    validation.jsonl        recordings that are held out, and strings of those
    test-single.jsonl       the recordings of the test split
    test-strings.jsonl      strings of those

With --without SPEAKER, all recordings of a speaker are the test split, and nobody else's.
"""

import argparse
import json
import random
import tarfile
import wave
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_INDICES, VALIDATION_INDICES = range(5), range(5, 8)
SHORTEST, LONGEST = 3, 7
"""Digits of a string."""
PAUSE = (0.02, 0.25)
"""Seconds of silence between two digits."""


@dataclass(frozen=True)
class Recording:
    """It is one digit."""

    speaker: str
    index: int
    digit: int
    rate: int
    frames: bytes
    """16 bit, mono."""


def recordings(archive: Path) -> Iterator[Recording]:
    """It yields those of the archive, in the order of their names."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            content = tar.extractfile(member)
            if content is None or not member.name.endswith(".wav"):
                continue
            digit, speaker, index = Path(member.name).stem.split("_")
            with wave.open(BytesIO(content.read())) as file:
                assert (file.getnchannels(), file.getsampwidth()) == (1, 2), member.name
                frames = file.readframes(file.getnframes())
                yield Recording(speaker, int(index), int(digit), file.getframerate(), frames)


class Corpus:
    """It is a folder that recordings and manifests are written into."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "wav").mkdir(parents=True)

    def write(self, name: str, parts: Iterable[tuple[str, Sequence[Recording | int]]]) -> int:
        """It writes a manifest, and the recordings that it names: each is joined of recordings, and of silences by
        their samples. It returns how many there are."""
        lines = [self._line(key, pieces) for key, pieces in parts]
        (self._folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return len(lines)

    def _line(self, key: str, pieces: Sequence[Recording | int]) -> str:
        heard = [piece for piece in pieces if isinstance(piece, Recording)]
        path, rate = self._folder / "wav" / f"{key}.wav", heard[0].rate
        frames = b"".join(p.frames if isinstance(p, Recording) else bytes(2 * p) for p in pieces)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(frames)
        text = " ".join(DIGITS[piece.digit] for piece in heard)
        facts = {"audio_filepath": f"wav/{path.name}", "duration": len(frames) / 2 / rate, "text": text}
        return json.dumps({**facts, "speaker": heard[0].speaker})


def single(found: Iterable[Recording]) -> Iterator[tuple[str, Sequence[Recording]]]:
    """It yields recordings as they are."""
    for one in found:
        yield f"{one.digit}_{one.speaker}_{one.index}", [one]


def strings(
    found: Iterable[Recording], count: int, name: str, seed: int
) -> Iterator[tuple[str, list[Recording | int]]]:
    """It yields strings of 3 to 7 digits of one speaker each, by turns, with pauses of chance."""
    chance = random.Random(f"{name}/{seed}")
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for one in found:
        by_speaker[one.speaker].append(one)
    for number in range(count):
        speaker = sorted(by_speaker)[number % len(by_speaker)]
        pieces: list[Recording | int] = []
        for one in chance.choices(by_speaker[speaker], k=chance.randint(SHORTEST, LONGEST)):
            pieces += [one, int(chance.uniform(*PAUSE) * one.rate)]
        yield f"{name}_{speaker}_{number:05d}", pieces[:-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", type=Path, required=True, help="tar of recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder, which is made")
    parser.add_argument("--without", metavar="SPEAKER", help="whom the model shall be tested on alone")
    parser.add_argument("--strings", type=int, default=4000, help="strings to learn from")
    parser.add_argument("--test-strings", type=int, default=500, help="strings of validation and of the test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    everything = list(recordings(options.archive))
    if options.without:
        test = [one for one in everything if one.speaker == options.without]
        learnt = [one for one in everything if one.speaker != options.without]
        if not test:
            parser.error(f"--without: nobody is called {options.without}")
    else:
        test = [one for one in everything if one.index in TEST_INDICES]
        learnt = [one for one in everything if one.index not in TEST_INDICES]
    validation = [one for one in learnt if one.index in VALIDATION_INDICES]
    train = [one for one in learnt if one.index not in VALIDATION_INDICES]

    corpus = Corpus(options.out)
    more, few = options.strings, options.test_strings
    for name, parts in (
        ("single", single(train)),
        ("strings", strings(train, more, "train", options.seed)),
        ("validation", [*single(validation), *strings(validation, few, "validation", options.seed)]),
        ("test-single", single(test)),
        ("test-strings", strings(test, few, "test", options.seed)),
    ):
        print(f"{name}: {corpus.write(name, parts):,} utterances")


if __name__ == "__main__":
    main()
