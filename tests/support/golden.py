"""Recorded losses, gradient norms and checkpoint digests of short runs are what a refactoring must leave as it was.

    python tests/support/golden.py FOLDER      records them anew, after a change that is meant to change numbers

Each of two test models (GPT-2-like, llama-like) runs dense, with MLRA, sigmaReparam and bf16, under TP2 x PP2 and
ZeRO-2. The last digits go by the processor and by torch, so a recording names both, and holds for them alone.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from support.corpus import write_corpus
from support.distributed import run_distributed
from support.runs import newest_checkpoint, run_config, run_to_end
from support.training import Layout

from pretrain.config.run import RunConfig

RECORDED = Path(__file__).parent.parent / "golden"
STEPS = 30

LAYOUTS = {"tp2-pp2": Layout(tensor=2, pipeline=2, accumulation=3), "zero2": Layout(data=2, zero=2)}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "dropout": 0.1},
    "llama": {
        "activation": "swiglu",
        "normalization": "rms_norm",
        "bias": False,
        "tied_embeddings": False,
        "attention": {"num_heads": 4, "num_key_value_heads": 2},
    },
}
METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "mlra": {"attention": {"kind": "mlra"}},
    "sigma": {"reparametrization": "sigma"},
    "bf16": {},
}
CASES = [f"{model}-{method}-{layout}" for model in MODELS for method in METHODS for layout in LAYOUTS]
TIMES = ("seconds", "tokens_per_second", "tflops", "mfu", "memory", "wait", "session")
"""Beginnings of the names of metrics that no two runs have in common."""


def case_config(case: str, folder: Path, corpus: Path) -> RunConfig:
    """It returns the configuration of a case, of `STEPS` steps, in `folder/test`."""
    model_name, method, layout_name = case.split("-", 2)
    model, extra = MODELS[model_name], METHODS[method]
    attention = {"num_heads": 4, **model.get("attention", {}), **extra.get("attention", {})}
    layout = LAYOUTS[layout_name]
    config = run_config(
        layout,
        folder,
        corpus,
        run={"steps": STEPS},
        model={"num_layers": 4, "hidden_size": 32, **model, **extra, "attention": attention},
        checkpoint={"every_steps": 15},
        evaluation={"every_steps": 15},
        watchdog={"window": 16, "horizon": 4, "memory_every_steps": 8},
    )
    if method != "bf16":
        return config
    table = config.model_dump(mode="json")
    table["precision"]["dtype"] = "bf16"
    table["parallel"]["zero_stage"] = max(layout.zero, 1)
    return RunConfig.model_validate(table)


def machine() -> str:
    """It names what the last digits go by."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def run_case(case: str, folder: Path, corpus: Path) -> str:
    """It trains, and says what came out."""
    config = case_config(case, folder, corpus)
    world_size = LAYOUTS[case.split("-", 2)[2]].world_size
    assert set(run_distributed(run_to_end, world_size, config)) == {"finished"}
    return outcome(folder)


def outcome(folder: Path) -> str:
    """It returns lines of text: a step each, with a digest of all else that was measured; then the last checkpoint."""
    rows = [json.loads(line) for line in (folder / "test/metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows if "loss" in row}
    lines = [f"# {machine()}", "# step loss gradient_norm digest_of_the_other_metrics"]
    for step, row in sorted(steps.items()):
        others = {
            name: value
            for name, value in sorted(row.items())
            if name not in ("step", "loss", "gradient_norm") and not name.startswith(TIMES)
        }
        digest = hashlib.sha256(json.dumps(others).encode()).hexdigest()[:12]
        lines.append(f"{step} {row['loss']!r} {row['gradient_norm']!r} {digest}")
    validation = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    lines += [f"validation {step} {loss!r}" for step, loss in sorted(validation.items())]
    manifest = json.loads((newest_checkpoint(folder) / "MANIFEST.json").read_text())
    lines.append(f"model {manifest['config_digest']}")
    lines += [f"state {rank} {checksum}" for rank, checksum in enumerate(manifest["checksums"])]
    return "\n".join(lines) + "\n"


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = write_corpus(Path(scratch) / "corpus")
        for case in CASES:
            text = run_case(case, Path(scratch) / case, corpus)
            (target / f"{case}.txt").write_text(text)
            print(case, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
