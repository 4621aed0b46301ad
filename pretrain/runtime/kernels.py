"""Which implementations of AdamW and the norms a run uses, and why."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pretrain.errors import ConfigurationError, Problem
from pretrain.runtime.libraries import Library, find_apex, find_flash_attention, find_transformer_engine

APEX = find_apex()
if APEX.usable and torch.cuda.is_available():
    from apex.normalization import FusedLayerNorm, FusedRMSNorm
    from apex.optimizers import FusedAdam


@dataclass(frozen=True)
class Kernels:
    """The implementations that were chosen."""

    adamw: type[torch.optim.Optimizer]
    """torch's AdamW or apex's FusedAdam."""
    fused_norms: bool
    """Norms are apex's."""
    description: str
    """One line that says what is used and why."""

    def norm(self, kind: Literal["layer_norm", "rms_norm"], *, bias: bool = True) -> type[nn.Module]:
        """The norm layer for a kind; apex has no LayerNorm without bias."""
        if kind == "layer_norm":
            return FusedLayerNorm if self.fused_norms and bias else nn.LayerNorm
        return FusedRMSNorm if self.fused_norms else nn.RMSNorm


def detect_kernels(optimizer: Literal["auto", "torch", "apex"] = "auto") -> Kernels:
    """Choose among what is installed; raises ConfigurationError when apex is asked for and not usable."""
    reason = why_not_apex(APEX, torch.cuda.is_available())
    if optimizer == "apex" and reason:
        raise ConfigurationError(
            "the optimizer cannot be had",
            [
                Problem(
                    "optimizer.implementation", f"apex is not usable here: {reason}", '"auto" works', '"apex"'
                )
            ],
        )
    fused = not reason and optimizer != "torch"
    return Kernels(
        adamw=FusedAdam if fused else torch.optim.AdamW,
        fused_norms=not reason,
        description=describe(fused, reason),
    )


def why_not_apex(apex: Library, cuda: bool) -> str:
    """The reason not to use apex; empty where it is usable."""
    if not apex.usable:
        return apex.description
    return "" if cuda else "no CUDA device"


def describe(fused_adamw: bool, reason: str) -> str:
    """One line for the start of a run and for `surefoot doctor`."""
    adamw = "apex FusedAdam" if fused_adamw else "torch fused AdamW"
    norms = "torch" if reason else "apex"
    return (
        f"{adamw}, {norms} norms (apex: {reason or APEX.description}); attention by torch (flash-attn: "
        f"{find_flash_attention().description}, Transformer Engine: {find_transformer_engine().description})"
    )
