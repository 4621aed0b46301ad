"""How fast samples are read: by the index, and by webdataset's own reader, on the same shards in one process.

    python benchmarks/data.py [--samples N] [--sequence-length N] [--rounds N] [--json FILE]

Goals: a sample sought by the index is read at least 5 times as fast as webdataset reads the same shards from
front to back, and seeking a stream to the last sample takes no longer than to the first. The arms take turns;
medians over the rounds are reported. All shards are in the page cache, so this is the cost of the readers.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import webdataset
from rich.console import Console
from rich.table import Table

from data_pipeline.reading.stream import BatchStream
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.storage import LocalFolder
from data_pipeline.text.blocks import BlockCodec
from data_pipeline.text.config import TextConfig
from data_pipeline.text.manifest import TextManifest
from data_pipeline.text.source import TextSource
from data_pipeline.text.splits import Packing, SplitWriter
from data_pipeline.text.tokenizer import train_tokenizer

SHARDS = 8
SEEKS = 200
"""Seeks in one round."""

READ_GOAL = 5.0


def main() -> None:
    """Write shards, time the arms, print and save."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), arguments.samples, arguments.sequence_length)
        reading = time_arms(reading_arms(Path(folder)), arguments.rounds)
        seeking = time_arms(seeking_arms(Path(folder), arguments), arguments.rounds)
    report(arguments, reading, seeking)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/data.json"))
    return parser.parse_args()


def write_shards(folder: Path, samples: int, sequence_length: int) -> None:
    """Random ids, packed as `surefoot prepare text` does."""
    tokenizer = train_tokenizer(["some text for the smallest tokenizer that there can be"], 280)
    packing = Packing(sequence_length, -(-samples // SHARDS))
    with SplitWriter(folder, "train", tokenizer, packing) as writer:
        ids = np.random.default_rng(0).integers(2, 280, samples * sequence_length, dtype=np.uint16)
        writer.add(ids)
        writer.finish()


def reading_arms(folder: Path) -> dict[str, Callable[[], int]]:
    """Each reads every sample once, up to an array of ids, and says how many."""
    urls = [str(path) for path in sorted((folder / "train").glob("*.tar"))]

    def indexed(shuffle: bool) -> int:
        with closing(Dataset(LocalFolder(folder / "train"), TextManifest)) as dataset:
            codec = BlockCodec(dataset.manifest.sequence_length, dataset.manifest.dtype)
            order = np.random.default_rng(0).permutation(len(dataset)) if shuffle else range(len(dataset))
            return sum(codec.decode(dataset.read(int(number)).fields)[-1] >= 0 for number in order)

    def plain(decode: bool) -> int:
        dataset = webdataset.WebDataset(urls, shardshuffle=False)
        if decode:
            return sum(sample["npy"][-1] >= 0 for sample in dataset.decode())
        return sum(np.load(io.BytesIO(sample["npy"]))[-1] >= 0 for sample in dataset)

    return {
        "by the index, shuffled": lambda: indexed(True),
        "by the index, in order": lambda: indexed(False),
        "webdataset, numpy.load": lambda: plain(False),
        "webdataset, its decoder": lambda: plain(True),
    }


def seeking_arms(folder: Path, arguments: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Each seeks a stream back and forth and reads one sample, unshuffled so that places in shards are known."""
    data = TextConfig.model_validate(
        {
            "sources": [{"path": str(folder)}],
            "sequence_length": arguments.sequence_length,
            "micro_batch_size": 1,
            "global_batch_size": 1,
            "shuffle": False,
            "prefetch_steps": 0,
        }
    )
    stream = BatchStream(TextSource(), data, seed=0, data_rank=0, data_size=1)
    start = stream.state()

    def seek(position: int) -> int:
        for _ in range(SEEKS):
            stream.seek({**start, "position": position})
            next(stream)
        return SEEKS

    return {
        "first sample": lambda: seek(0),
        "last sample": lambda: seek(arguments.samples - 1),
        "last sample of epoch 1,000,000": lambda: seek(arguments.samples * 1_000_000 - 1),
    }


def time_arms(arms: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median microseconds per sample of each arm; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            started = time.perf_counter()
            count = arm()
            times[name].append((time.perf_counter() - started) / count * 1e6)
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def report(arguments: argparse.Namespace, reading: dict[str, float], seeking: dict[str, float]) -> None:
    """Print tables with ratios, and write the same as JSON."""
    shuffled, *_ = reading.values()
    fastest_plain = min(time for name, time in reading.items() if name.startswith("webdataset"))
    first, last, *_ = seeking.values()
    result = {
        "samples": arguments.samples,
        "sequence_length": arguments.sequence_length,
        "rounds": arguments.rounds,
        "reading_microseconds": reading,
        "seeking_microseconds": seeking,
        "reading_speedup": fastest_plain / shuffled,
        "seek_last_over_first": last / first,
    }
    console = Console()
    console.print(table("reading a sample", reading, shuffled), table("seeking and reading", seeking, first))
    console.print(
        f"index, shuffled, against the faster webdataset: {fastest_plain / shuffled:.1f} times as fast"
    )
    console.print(f"goal: at least {READ_GOAL:g}; seeking the last against the first: {last / first:.2f}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def table(title: str, times: dict[str, float], reference: float) -> Table:
    rows = Table(title=title)
    for column in ("arm", "µs per sample", "ratio"):
        rows.add_column(column, justify="left" if column == "arm" else "right")
    for name, measured in times.items():
        rows.add_row(name, f"{measured:.1f}", f"{measured / reference:.2f}")
    return rows


if __name__ == "__main__":
    main()
