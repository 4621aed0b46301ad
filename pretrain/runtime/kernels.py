"""This module chooses which implementation of the norms a run uses, and says why."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pretrain.runtime.libraries import Library, find_apex, find_flash_attention, find_transformer_engine

APEX = find_apex()
if APEX.usable and torch.cuda.is_available():
    from apex.normalization import FusedLayerNorm, FusedRMSNorm


@dataclass(frozen=True)
class Kernels:
    """It holds the implementations that were chosen."""

    fused_norms: bool
    """Norms are apex's."""
    description: str
    """One line that says what is used and why."""

    def norm(self, kind: Literal["layer_norm", "rms_norm"], *, bias: bool = True) -> type[nn.Module]:
        """It returns the norm layer for a kind; apex has no LayerNorm without bias."""
        if kind == "layer_norm":
            return FusedLayerNorm if self.fused_norms and bias else nn.LayerNorm
        return FusedRMSNorm if self.fused_norms else nn.RMSNorm


UNFUSED = Kernels(fused_norms=False, description="torch norms")
"""Norms are torch's, which a compiler can look into."""


def detect_kernels() -> Kernels:
    """Choose among what is installed."""
    reason = why_not_apex(APEX, torch.cuda.is_available())
    return Kernels(fused_norms=not reason, description=describe(reason))


def why_not_apex(apex: Library, cuda: bool) -> str:
    """It returns the reason not to use apex; that is empty where apex is usable."""
    if not apex.usable:
        return apex.description
    return "" if cuda else "no CUDA device"


def describe(reason: str) -> str:
    """It returns one line for the start of a run and for `surefoot doctor`; `reason` says why apex is not used."""
    norms = "torch" if reason else "apex"
    return (
        f"{norms} norms (apex: {reason or APEX.description}); attention by torch (flash-attn: "
        f"{find_flash_attention().description}, Transformer Engine: {find_transformer_engine().description})"
    )
