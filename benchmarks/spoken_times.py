"""A synthesizer says what time it is: speech to try a run with, of which nothing is downloaded but Debian's espeak-ng.

    apt-get install espeak-ng
    python benchmarks/spoken_times.py --out data/times-raw
    surefoot prepare speech --manifest data/times-raw/train.jsonl \
        --validation-manifest data/times-raw/validation.jsonl --out data/times

Sentences such as "it is twenty five minutes past seven in the evening" are said in several voices, pitches and speeds.
No sentence of validation is said in train, by anybody. Under --out lie wav files at 22,050 Hz and manifests, a JSON
object a line.
"""

import argparse
import itertools
import json
import random
import subprocess
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
MINUTES = ("five", "ten", "a quarter", "twenty", "twenty five", "half")
BEGINNINGS = ("it is", "it was", "the train leaves at", "let us meet at", "we close at")
PARTS_OF_DAY = ("", " in the morning", " in the afternoon", " in the evening")
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us+f2", "en-gb+f3", "en-us+m3", "en-gb+m7")
HELD_OUT = 0.1
"""Part of the sentences that validation alone has."""


def times() -> Iterator[str]:
    """It yields ways to say a time, hour by hour."""
    for number, hour in enumerate(HOURS):
        yield f"{hour} o'clock"
        yield from (f"{minutes} past {hour}" for minutes in MINUTES)
        yield from (f"{minutes} to {HOURS[(number + 1) % 12]}" for minutes in MINUTES[:-1])


def say(text: str, chance: random.Random, path: Path) -> str:
    """It writes a sentence as a wav file, and returns the voice that said it."""
    voice = chance.choice(VOICES)
    speed, pitch = str(chance.randint(130, 200)), str(chance.randint(30, 70))
    subprocess.run(["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", str(path), text], check=True)
    return voice


def write(folder: Path, name: str, sentences: Sequence[str], count: int, chance: random.Random) -> None:
    """It writes recordings of sentences and their manifest."""
    with (folder / f"{name}.jsonl").open("w") as manifest:
        for number in range(count):
            text, path = chance.choice(sentences), folder / "wav" / f"{name}-{number:05d}.wav"
            voice = say(text, chance, path)
            with wave.open(str(path)) as file:
                seconds = file.getnframes() / file.getframerate()
            facts = {"audio_filepath": f"wav/{path.name}", "duration": seconds, "text": text}
            manifest.write(json.dumps({**facts, "speaker": voice}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, which is made")
    parser.add_argument("--sentences", type=int, default=4000, help="recordings to learn from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    chance = random.Random(options.seed)
    said = [f"{b} {time}{part}" for b, time, part in itertools.product(BEGINNINGS, times(), PARTS_OF_DAY)]
    chance.shuffle(said)
    held_out = int(HELD_OUT * len(said))
    (options.out / "wav").mkdir(parents=True)
    write(options.out, "validation", said[:held_out], options.sentences // 10, chance)
    write(options.out, "train", said[held_out:], options.sentences, chance)


if __name__ == "__main__":
    main()
