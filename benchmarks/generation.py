"""Tokens a second of `surefoot generate` with a key-value cache and without, and of `transformers` with the same model.

    python benchmarks/generation.py                     on 2 threads of the CPU, or on a GPU if there is one
    python benchmarks/generation.py --size 124m --rounds 5

An arm continues the same prompt greedily by the same number of tokens, prefill included. Arms take turns, and ratios
are taken round by round. The model of `transformers` is a GPT-NeoX of the same sizes, as `surefoot export` makes of
ours; both have initial weights, on which the speed does not depend.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.inference.generate import next_tokens
from pretrain.inference.model import DTYPES, LoadedModel, build_layers
from pretrain.inference.sampling import Sampler, Sampling

try:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
except ImportError:
    GPTNeoXForCausalLM = None

SIZES = {
    # layers, hidden size, heads, vocabulary, sequence, tokens of the prompt, tokens that follow
    "tiny": (6, 384, 6, 8192, 256, 32, 192),
    "124m": (12, 768, 12, 50304, 1024, 64, 64),
}
GREEDY = Sampling(temperature=0)


def make_config(size: str, dtype: str) -> RunConfig:
    layers, hidden, heads, vocabulary, sequence, *_ = SIZES[size]
    return RunConfig.model_validate(
        {
            "run": {"name": "benchmark", "steps": 1},
            "model": {
                "num_layers": layers,
                "hidden_size": hidden,
                "vocabulary_size": vocabulary,
                "attention": {"num_heads": heads},
            },
            "data": {
                "sources": [{"path": "none"}],
                "sequence_length": sequence,
                "micro_batch_size": 1,
                "global_batch_size": 1,
            },
            "optimizer": {"learning_rate": 1e-3},
            "precision": {"dtype": dtype},
        }
    )


def make_model(config: RunConfig, mesh: ParallelMesh) -> LoadedModel:
    layers = build_layers(config.model, config.data, mesh, seed=1)
    layers.to(mesh.device, DTYPES[config.precision.dtype])
    return LoadedModel(config.model, config.data, mesh, layers.eval())


def make_neox(size: str, model: LoadedModel) -> Any:
    """The same model of `transformers`."""
    layers, hidden, heads, vocabulary, sequence, *_ = SIZES[size]
    settings = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        rotary_pct=1.0,
        max_position_embeddings=sequence,
        use_parallel_residual=False,
        tie_word_embeddings=True,
    )
    weight = next(model.layers.parameters())
    return GPTNeoXForCausalLM(settings).to(weight.device, weight.dtype).eval()


@torch.no_grad()
def uncached(model: LoadedModel, prompt: list[int], count: int) -> None:
    """All tokens go through the model for each further one."""
    sampler, seen = Sampler(GREEDY), list(prompt)
    for _ in range(count):
        logits = model.layers(torch.tensor([seen], device=model.mesh.device))
        assert isinstance(logits, Tensor)
        seen.append(sampler.choose(logits[0, -1]))


def make_arms(size: str, model: LoadedModel) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    *_, vocabulary, sequence, length, count = SIZES[size]
    prompt = torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    arms: dict[str, Callable[[], object]] = {
        "cached": lambda: list(next_tokens(model, sequence, prompt, Sampler(GREEDY), count)),
        "uncached": lambda: uncached(model, prompt, count),
    }
    if GPTNeoXForCausalLM is not None:
        neox, ids = make_neox(size, model), torch.tensor([prompt], device=model.mesh.device)
        limits = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        arms["transformers"] = lambda: neox.generate(ids, attention_mask=torch.ones_like(ids), **limits)
    return arms


def measure(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm by round; of the first one, which warms up, nothing is kept."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-1, rounds):
        for name in sorted(arms, reverse=number % 2 == 0):  # no arm always goes first
            started = time.perf_counter()
            arms[name]()  # the last token is on the host when it ends
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def report(seconds: dict[str, list[float]], options: argparse.Namespace, device: str) -> None:
    """A table, and the same as JSON."""
    count = SIZES[options.size][-1]
    facts = f"{options.threads} threads, torch {torch.__version__}, {options.size}, {options.rounds} rounds"
    print(f"{device}, {facts}")
    print(f"{'arm':>13} {'tokens/s':>9}  cached / arm, in tokens/s")
    rows = {}
    for name, spent in seconds.items():
        ratios = [other / own for other, own in zip(spent, seconds["cached"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "tokens_per_second": count / statistics.median(spent),
            "cached_over_arm": (low, middle, high),
        }
        print(f"{name:>13} {rows[name]['tokens_per_second']:9.1f}  {middle:.2f} ({low:.2f} to {high:.2f})")
    document = {
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "size": options.size,
        "arms": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/generation.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    mesh = ParallelMesh.alone()
    model = make_model(make_config(options.size, "bf16" if mesh.device.type == "cuda" else "fp32"), mesh)
    report(measure(make_arms(options.size, model), options.rounds), options, mesh.device_name)


if __name__ == "__main__":
    main()
