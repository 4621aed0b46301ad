"""What the probes say of gradients, by the plain formulas on an unsharded model."""

from typing import Any

import torch
from torch import Tensor


def gradient_facts(names: tuple[str, ...], module: Any, objective: Any, batches: Any) -> dict[str, float]:
    """Norm and variance of the gradient, from the gradients of each micro-batch one by one."""
    factor = len(batches) / sum(batch.target_weight for batch in batches)
    flat: dict[str, list[Tensor]] = {}
    for batch in batches:
        scaled = batch.scaled(factor)
        objective(module(*scaled.inputs), scaled.labels).backward()
        seen: set[int] = set()
        for owner, layer in zip(names, module.layers, strict=True):
            own = [p for p in layer.parameters() if id(p) not in seen]
            seen.update(map(id, own))
            if own:
                flat.setdefault(owner, []).append(torch.cat([p.grad.double().view(-1) for p in own]))
        module.zero_grad()
    facts = {}
    for owner, gradients in flat.items():
        stacked = torch.stack(gradients)
        facts[f"gradient_norm/{owner}"] = stacked.mean(0).norm().item()
        facts[f"gradient_variance/{owner}"] = stacked.var(dim=0).sum().item()
    facts["gradient_variance"] = sum(v for name, v in facts.items() if name.startswith("gradient_variance/"))
    return facts
