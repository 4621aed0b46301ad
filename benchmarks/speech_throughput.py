"""Seconds of audio a second, for what speech takes on its way: FLAC, features, batches, a training step, transcripts.

    python benchmarks/speech_throughput.py                       the model of configs/speech/digits.toml, one thread
    python benchmarks/speech_throughput.py --rounds 9 --seconds 15

Audio is noise of --seconds at 16 kHz with a transcript of 12 characters a second; the model's weights are its first
ones, on which only the speed of a beam search depends: with them it has more to choose from than with trained ones. The
share of a step that waits for data is that of batches which a thread makes while the model trains; here both have one
core, so what is told is the most that it can be: the time of a batch over that of a step and the batch.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.shards.dataset import Sample
from data_pipeline.speech.audio import decode_flac, encode_flac
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.collate import SpeechCollator
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.features import LogMel, normalized
from data_pipeline.speech.manifest import LengthsEntry, SpeechManifest, UnitsEntry
from parallel.mesh import ParallelMesh
from parallel.pipeline import SequentialLayers
from pretrain.config.loader import load_config
from pretrain.engine.build import assemble_engine, model_parts
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, Verdict
from pretrain.tasks.speech.decoding import decode

ROOT = Path(__file__).parents[1]
RATE, UNITS, UNITS_A_SECOND = 16_000, 29, 12
DIGEST = "0" * 64
SPEEDS = {"speeds": [0.9, 1.0, 1.1], "frequency_masks": 2, "frequency_width": 27, "time_masks": 2}


def proceed(report: StepReport) -> Verdict:
    return Verdict(Action.PROCEED)


def samples_of(count: int, seconds: float) -> list[Sample]:
    """Noise, half as loud as there can be, and units of chance."""
    chance = np.random.default_rng(0)
    fields = []
    for number in range(count):
        audio_N = (chance.normal(0, 0.15, round(seconds * RATE)).clip(-1, 1) * 32767).astype(np.int16)
        units = chance.integers(1, UNITS, round(seconds * UNITS_A_SECOND)).astype("<u2")
        parts = (memoryview(encode_flac(audio_N, RATE)), memoryview(units.tobytes()))
        fields.append(Sample("noise", parts, chance=number))
    return fields


def manifest_of(count: int, seconds: float) -> SpeechManifest:
    """What the collator asks of a manifest; there are no shards."""
    return SpeechManifest.model_construct(
        sample_rate=RATE,
        longest_seconds=seconds,
        samples=count,
        units=UnitsEntry(file="units.json", sha256=DIGEST, count=UNITS),
        lengths=LengthsEntry(bytes=1, sha256=DIGEST),
    )


def timed(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the median of rounds, behind one that does not count."""
    work()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def stages(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """By name what is timed, each of a whole batch."""
    count, seconds = options.batch, options.seconds
    settings = [
        "data.sample_rate=16000",
        "data.mel_bins=80",
        f"data.max_seconds={seconds}",
        f"model.vocabulary_size={UNITS}",
        f"data.micro_batch_size={count}",
        f"data.global_batch_size={count}",
    ]
    config = load_config(ROOT / "configs/speech/digits.toml", settings)
    plain = SpeechConfig.model_validate({**config.data.model_dump(), "augmentation": {}})
    altered = SpeechConfig.model_validate({**config.data.model_dump(), "augmentation": SPEEDS})
    samples, manifest = samples_of(count, seconds), manifest_of(count, seconds)
    heard = [torch.from_numpy(decode_flac(s.fields[0], RATE, round(seconds * RATE))) for s in samples]
    mel, collate, alter = LogMel(plain), SpeechCollator(manifest, plain), SpeechCollator(manifest, altered)
    batch: SpeechBatch = collate(samples)

    mesh = ParallelMesh.create(config.parallel)
    engine = assemble_engine(config, plan(config, 1), mesh, detect_kernels())
    parts = model_parts(config, ParallelMesh.alone(), detect_kernels())
    model = SequentialLayers(parts.layers).eval()
    with torch.no_grad():
        logs_BTV = model(*batch.inputs).double().log_softmax(-1).numpy()
    step = iter(range(1, 1_000_000))

    def forward() -> None:
        with torch.no_grad():
            model(*batch.inputs).argmax(-1)

    return {
        "FLAC to samples": lambda: [decode_flac(s.fields[0], RATE, round(seconds * RATE)) for s in samples],
        "log-mel features": lambda: [normalized(mel(audio_N)) for audio_N in heard],
        "a batch": lambda: collate(samples),
        "a batch, with speeds and masks": lambda: alter(samples),
        "a training step": lambda: engine.step([batch], proceed, step=next(step), learning_rate=1e-4),
        "greedy transcripts": forward,
        f"beam search ({options.beam})": lambda: [decode(logs_TV, options.beam) for logs_TV in logs_BTV],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8, help="utterances")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each")
    parser.add_argument("--beam", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    audio = options.batch * options.seconds
    taken = {name: timed(work, options.rounds) for name, work in stages(options).items()}
    for name, seconds in taken.items():
        print(f"{name:32} {1000 * seconds:9.1f} ms {audio / seconds:12,.0f} s of audio a second")
    made, trained = taken["a batch, with speeds and masks"], taken["a training step"]
    share = made / (made + trained)
    print(
        f"a batch takes {made / trained:.1%} of a step; without a thread data would be {share:.1%} of the time"
    )
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "audio_seconds": audio,
        "seconds": taken,
        "data_share": share,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speech-throughput.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
