"""How much memory and time it takes to convert and to export a checkpoint.

    python benchmarks/conversion.py [--layers 24] [--hidden 1280] [--folder DIR]

A checkpoint of a GPT with random weights and moments is made up (half a billion parameters by default: 6 GB), for two
tensor-parallel ranks. Each command then runs in a process of its own, whose peak memory the system tells
(`ru_maxrss`, which counts everything: Python, torch, pages of mapped files). The bound is twice the largest tensor and
1 GiB. Columns: peak in GiB, the bound, seconds of the wall clock, bytes written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.text.tokenizer import TOKENIZER_FILE, Tokenizer, train_tokenizer
from pretrain.checkpoint.compatibility import architecture_of, tensor_records
from pretrain.checkpoint.conversion import layout_of, write_shares
from pretrain.checkpoint.manifest import Manifest, seal
from pretrain.checkpoint.rank_files import RankState, described, write_companion, write_rank_state
from pretrain.checkpoint.saved_tensors import Cut
from pretrain.checkpoint.tag import Tag
from pretrain.config.loader import dump_config
from pretrain.config.run import RunConfig
from pretrain.step import TrainState

ROOT = Path(__file__).parents[1]
KINDS = ("weight", "exp_avg", "exp_avg_sq")
VOCABULARY = 50_257


class MadeUp:
    """It gives random tensors under any name, as `SavedTensors` gives saved ones."""

    def kinds(self, name: str) -> Sequence[str]:
        return KINDS

    def dtype(self, name: str, kind: str) -> torch.dtype:
        return torch.float32

    def read_share(
        self, name: str, kind: str, cut: Cut, rank: int, size: int, start: int, count: int
    ) -> Tensor:
        return torch.randn(count)


def configured(layers: int, hidden: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "made-up", "steps": 10},
            "model": {
                "num_layers": layers,
                "hidden_size": hidden,
                "vocabulary_size": VOCABULARY,
                "attention": {"num_heads": hidden // 64},
            },
            "parallel": {"tensor": 2, "zero_stage": 1},
            "data": {
                "sources": [{"path": "none"}],
                "sequence_length": 1024,
                "micro_batch_size": 1,
                "global_batch_size": 1,
            },
            "optimizer": {"learning_rate": 1e-4},
        }
    )


def tokenizer() -> Tokenizer:
    """It is a small one: how many ids there are beyond its own, no export asks."""
    return train_tokenizer(["To see how much memory it takes, any tokenizer will do.\n" * 9], 290)


def make_up(config: RunConfig, checkpoints: Path) -> Path:
    """It writes the checkpoint and returns its folder."""
    tag, layout, outline = Tag(1, 5), layout_of(config, 1), config.model.outline(config.data)
    folder = checkpoints / str(tag)
    folder.mkdir(parents=True)
    saved: Any = MadeUp()
    counts = {"tensor": {"step": 5.0}, "group": {}}
    scalars = {"weights": counts, "gammas": {}, "counters": {}, "scale": {}, "probes": {}}
    companions = {"config.toml": dump_config(config).encode(), TOKENIZER_FILE: tokenizer().model}
    files = described([write_companion(folder / name, text) for name, text in companions.items()], 0)
    for rank, path in enumerate(write_shares(saved, outline, layout, 0, folder)):
        files |= described([path, write_rank_state(folder, rank, RankState({}, {}, {}, scalars))], rank)
    manifest = Manifest(
        tag=str(tag),
        layout=layout,
        config_digest=architecture_of(config),
        data_fingerprint="made up",
        optimizer="adamw",
        run_id="made up",
        state=TrainState(step=5, updates=5),
        files=files,
        tensors=tensor_records(outline),
        versions={},
    )
    seal(folder, manifest)
    return folder


def measured(words: list[str]) -> tuple[float, float]:
    """It runs a command and returns its peak memory, in bytes, and seconds."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pretrain.commands", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return usage.ru_maxrss * 1024 / (2**20 if sys.platform == "darwin" else 1), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1280)
    parser.add_argument("--folder", type=Path, help="where there is room for three times the checkpoint")
    parser.add_argument("--only", help="commands whose name has this in it")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    config = configured(options.layers, options.hidden)
    sizes = [prod(size.shape) for size in config.model.outline(config.data).tensors.values()]
    bound = 2 * 4 * max(sizes) + 2**30
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        source = make_up(config, Path(scratch) / "run/checkpoints")
        commands = {
            "convert to pipeline 2": ["convert", str(source), "--tensor", "1", "--pipeline", "2"],
            "convert to tensor 4": ["convert", str(source), "--tensor", "4"],
            "export --to safetensors": ["export", str(source), "--to", "safetensors"],
            "export --to huggingface": ["export", str(source), "--to", "huggingface"],
        }
        rows = []
        print(f"{sum(sizes):,} parameters; largest tensor {4 * max(sizes) / 2**30:.2f} GiB")
        print("| command | peak GiB | bound | seconds | GB written |")
        print("| --- | --: | --: | --: | --: |")
        for number, (name, words) in enumerate(commands.items()):
            if options.only and options.only not in name:
                continue
            out = Path(scratch) / f"out-{number}"
            peak, seconds = measured([*words, "--out", str(out)])
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            print(
                f"| {name} | {peak / 2**30:.2f} | {bound / 2**30:.2f} | {seconds:.0f} | {size / 1e9:.1f} |",
                flush=True,
            )
            rows.append({"command": name, "peak_bytes": peak, "bound_bytes": bound, "seconds": seconds})
            subprocess.run(["rm", "-r", out], check=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
