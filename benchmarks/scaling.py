"""The tables of docs/scaling.md: `surefoot check` estimates steps of three models on 8 to 4,096 devices.

    python benchmarks/scaling.py [--device h100]

Every row is one call of the command, which `--commands` prints.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pretrain.plan.step_time import HOST_SECONDS

PARTS = ("compute", "memory", "tensor", "pipeline", "bubble", "data", "agreement")


@dataclass(frozen=True)
class Model:
    """A model, and what all of its rows have in common."""

    title: str
    config: str
    settings: tuple[str, ...]
    rows: tuple[tuple[int, int, int, int, int], ...]
    """World size, tensor, pipeline, ZeRO stage, micro-batch."""


MODELS = (
    Model(
        "1.3 B, sequences of 2,048, 2,048 of them a step (4.2 M tokens)",
        "configs/gpt/gpt-1.3b.toml",
        ("data.global_batch_size=2048",),
        (
            *((world, 1, 1, 1, 4) for world in (8, 64, 512)),
            (512, 1, 1, 0, 4),
            (512, 1, 1, 2, 2),
            (512, 1, 1, 3, 4),
            (512, 2, 1, 1, 4),
            (512, 8, 1, 1, 4),
            (512, 1, 4, 1, 4),
            (2048, 1, 1, 1, 1),
            (2048, 2, 1, 1, 2),
            (4096, 2, 1, 1, 1),
            (4096, 4, 1, 1, 2),
        ),
    ),
    Model(
        "6.7 B, blocks recomputed, sequences of 2,048, 2,048 of them a step (4.2 M tokens)",
        "configs/gpt/gpt-6.7b-many-hosts.toml",
        ("data.global_batch_size=2048",),
        (
            *((world, 4, 1, 1, 4) for world in (8, 64, 512)),
            (512, 1, 1, 1, 4),
            (512, 1, 1, 3, 4),
            (512, 2, 1, 1, 4),
            (512, 8, 1, 1, 8),
            (512, 1, 4, 1, 1),
            (512, 4, 2, 1, 4),
            (2048, 4, 1, 1, 4),
            (4096, 4, 1, 1, 2),
            (4096, 8, 1, 1, 4),
            (4096, 4, 4, 1, 2),
        ),
    ),
    Model(
        "70 B, blocks recomputed, sequences of 4,096, 2,048 of them a step (8.4 M tokens)",
        "configs/gpt/gpt-6.7b-many-hosts.toml",
        (
            "model.num_layers=80",
            "model.hidden_size=8192",
            "model.ffn_hidden_size=28672",
            "model.attention={num_heads=64,num_key_value_heads=8}",
            "data.sequence_length=4096",
            "data.global_batch_size=2048",
        ),
        (
            (64, 8, 8, 1, 1),
            *((world, 8, 4, 1, 1) for world in (64, 512, 1024, 2048, 4096)),
            (512, 1, 1, 3, 1),
            (512, 8, 1, 3, 1),
            (512, 4, 8, 1, 1),
            (512, 8, 2, 1, 1),
            (4096, 8, 1, 3, 4),
            (4096, 8, 8, 1, 1),
            (4096, 8, 16, 1, 1),
        ),
    ),
)


def command(model: Model, row: tuple[int, int, int, int, int], device: str) -> list[str]:
    """The words of a row's command."""
    world, tensor, pipeline, zero, micro = row
    settings = (
        *model.settings,
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.zero_stage={zero}",
        f"data.micro_batch_size={micro}",
    )
    overrides = [word for setting in settings for word in ("--set", setting)]
    return ["surefoot", "check", model.config, "--world-size", str(world), "--device", device, *overrides]


def answer(words: list[str]) -> dict[str, Any]:
    """What the command says, as JSON."""
    run = "import sys; from launch.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", run, *words[1:], "--json"], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def table(model: Model, device: str) -> Iterator[str]:
    """The lines of a model's table."""
    yield f"### {model.title}"
    yield "| ranks = t x p x d | ZeRO | micro | GB | s a step | MFU | bound by | " + " | ".join(PARTS) + " |"
    yield "|---|--:|--:|--:|--:|--:|---|" + "--:|" * len(PARTS)
    for row in model.rows:
        world, tensor, pipeline, zero, micro = row
        found = answer(command(model, row, device))
        time, memory = found["step_time"], found["memory"]["total"] / 1e9
        fits = "" if memory < time["rates"]["memory_gb"] else " (!)"
        shares = [f"{100 * time[part] / time['seconds']:.0f}" if time[part] else "" for part in PARTS]
        cells = [
            f"{world:,} = {tensor} x {pipeline} x {world // (tensor * pipeline)}",
            str(zero),
            str(micro),
            f"{memory:.0f}{fits}",
            f"{time['seconds']:.3g}{' *' if time['block_seconds'] < HOST_SECONDS else ''}",
            f"{100 * time['utilisation']:.1f} %",
            time["bound"],
            *shares,
        ]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="h100")
    parser.add_argument("--commands", action="store_true", help="print the commands and run none")
    options = parser.parse_args()
    for model in MODELS:
        if options.commands:
            for row in model.rows:
                print(shlex.join(command(model, row, options.device)))
            continue
        print("\n".join(table(model, options.device)), end="\n\n")


if __name__ == "__main__":
    main()
