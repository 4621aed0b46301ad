"""Sharpness-aware steps are compared with those of another layout, and with the plain method in float64."""

from typing import Any

import torch
from support.courses import STEPS, Batches, Losses
from support.training import make_engine, make_mesh, proceed
from torch import Tensor, nn

from parallel.power_step import power_step
from parallel.spectral import SpectralLayer, find_spectral_layers
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.optim.config import AdamWConfig, OptimizerConfig, SGDConfig, SharpnessAwareConfig


def with_sam(config: RunConfig, optimizer: OptimizerConfig, sam: SharpnessAwareConfig) -> RunConfig:
    optimizer = optimizer.model_copy(update={"sharpness_aware": sam})
    return config.model_copy(update={"optimizer": optimizer})


def sharpness_aware_course(config: RunConfig, batches: Batches) -> Losses:
    """It returns (loss, gradient norm), then (ascended loss, ascent gradient norm) of each step."""
    engine = make_engine(config, make_mesh(config.parallel))
    losses = []
    for step in range(1, STEPS + 1):
        rate = config.optimizer.learning_rate
        report, _ = engine.step(batches(config, engine.mesh, step), proceed, step=step, learning_rate=rate)
        losses += [
            (report.loss, report.gradient_norm),
            (report.measures["ascended_loss"], report.measures["ascent_gradient_norm"]),
        ]
    return losses


class PlainMethod:
    """It is SAM as in the papers, by autograd, on one module in float64."""

    def __init__(self, engine: TrainEngine, config: RunConfig) -> None:
        """`engine` is never stepped: it lends its module and objective."""
        self._module, self._objective = engine.module, engine.evaluator._objective
        self._sam = config.optimizer.sharpness_aware
        self._spectral = find_spectral_layers(engine.module)
        self._group = engine.mesh.tensor.group
        gammas = [layer.norms.gamma_K.requires_grad_() for layer in self._spectral]
        self._parameters = [*engine.module.parameters(), *gammas]
        optimizer, rest = config.optimizer, [p for p in engine.module.parameters() if p.ndim == 1]
        groups = [
            {
                "params": [p for p in engine.module.parameters() if p.ndim > 1],
                "weight_decay": optimizer.weight_decay,
            },
            {"params": [*rest, *gammas], "weight_decay": 0.0},
        ]
        if isinstance(optimizer, SGDConfig):
            self._optimizer: Any = torch.optim.SGD(groups, momentum=optimizer.momentum)
        else:
            assert isinstance(optimizer, AdamWConfig)
            betas = optimizer.beta1, optimizer.beta2
            self._optimizer = torch.optim.AdamW(groups, betas=betas, eps=optimizer.epsilon)
        for group in self._optimizer.param_groups:
            group["lr"] = optimizer.learning_rate

    def step(self, batches: Any) -> tuple[float, float, float]:
        """It returns loss, ascended loss and norm of the second gradient."""
        first = self._gradients(batches)
        before = [p.detach().clone() for p in self._parameters]
        sizes = before if self._sam.adaptive else [torch.ones_like(p) for p in before]
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self._parameters]
        length = sum((t * g).square().sum() for t, g in zip(sizes, slopes, strict=True)).sqrt() + 1e-12
        with torch.no_grad():
            for p, t, g in zip(self._parameters, sizes, slopes, strict=True):
                p.add_(self._sam.rho * t * t * g / length)
        second = self._gradients(batches)
        with torch.no_grad():
            for p, old in zip(self._parameters, before, strict=True):
                p.copy_(old)
        norm = sum(p.grad.square().sum() for p in self._parameters if p.grad is not None).sqrt()
        self._optimizer.step()
        if self._spectral:
            power_step(self._spectral, self._group)
        return first, second, norm.item()

    def _gradients(self, batches: Any) -> float:
        for p in self._parameters:
            p.grad = None
        for layer in self._spectral:
            layer.norms.effective = what(layer).detach()
        weight = sum(batch.target_weight for batch in batches)
        total = 0.0
        for batch in batches:
            scaled = batch.scaled(1 / weight)
            loss = self._objective(self._module(*scaled.inputs), scaled.labels)
            loss.backward()
            total += loss.item()
        for layer in self._spectral:
            gradient, layer.weight.grad = layer.weight.grad, None
            (what(layer) * gradient).sum().backward()
        return total


def what(layer: SpectralLayer) -> Tensor:
    """It returns (gamma / v^T W u) W of each stacked matrix, u and v constant."""
    norms, blocks = layer.norms, layer.weight.split(layer.norms.local_blocks)
    if not norms.rows_sharded:
        blocks = (layer.weight,)
    vectors = norms.sharded_L.split([len(b) if norms.rows_sharded else b.shape[1] for b in blocks])
    made = []
    for number, (block, own) in enumerate(zip(blocks, vectors, strict=True)):
        whole = norms.replicated_KR[number].clone()
        sigma = own.clone() @ block @ whole if norms.rows_sharded else whole @ block @ own.clone()
        made.append(norms.gamma_K[number] / sigma * block)
    return torch.cat(made)


def against_the_plain_method(config: RunConfig, batches: Batches) -> tuple[float, float, float]:
    """It returns the largest difference in a loss and in a norm over 20 steps, relative, and in a weight after them."""
    unclipped = config.optimizer.model_copy(update={"gradient_clipping": 0.0})  # which is by a norm in fp32
    config = config.model_copy(update={"optimizer": unclipped})
    mesh = make_mesh(config.parallel)
    ours, lent = make_engine(config, mesh), make_engine(config, mesh)
    ours._engine.enable_backward_allreduce = False  # there is one rank, and DeepSpeed reduces no float64
    for engine in (ours, lent):
        gammas = engine._reparametrization.gammas
        for tensor in (*engine.module.parameters(), *engine.module.buffers(), *gammas):
            tensor.data = tensor.data.double()
        if spectral := find_spectral_layers(engine.module):
            pieces = gammas[0].split([len(layer.norms.gamma_K) for layer in spectral])
            for layer, piece in zip(spectral, pieces, strict=True):
                layer.norms.gamma_K = piece
            power_step(spectral, mesh.tensor.group)  # sigma, too, to the last digit
        engine._reparametrization.materialise()
    plain, losses, norms = PlainMethod(lent, config), 0.0, 0.0
    for step in range(1, STEPS + 1):
        rate = config.optimizer.learning_rate
        report, _ = ours.step(batches(config, mesh, step), proceed, step=step, learning_rate=rate)
        loss, ascended, norm = plain.step(batches(config, mesh, step))
        losses = max(
            losses, abs(report.loss / loss - 1), abs(report.measures["ascended_loss"] / ascended - 1)
        )
        norms = max(norms, abs(report.gradient_norm / norm - 1))
    pairs = zip(state_of(ours.module), state_of(lent.module), strict=True)
    return losses, norms, max((a - b).abs().max().item() for a, b in pairs)


def state_of(module: nn.Module) -> list[Tensor]:
    """It returns weights, gammas and sigmas."""
    norms = [layer.norms for layer in find_spectral_layers(module)]
    return [
        t.detach() for t in (*module.parameters(), *(n.gamma_K for n in norms), *(n.sigma_K for n in norms))
    ]
