"""A trained model is folded into plain matrices: it computes the same, and nothing of how it was trained is left.

sigmaReparam is folded into What = (gamma / sigma) W for every matrix, low-rank attention into its products U D, and
rows of the vocabulary's padding are left out. One tensor is in memory at a time, or the factors of one.
"""

from typing import TypeVar

import torch
from torch import Tensor

from pretrain.inference.model import TensorSource
from pretrain.models.config import AttentionConfig, TransformerConfig, VocabularyConfig
from pretrain.models.outline import Outline
from pretrain.tasks.config import TaskConfig

Model = TypeVar("Model", bound=TaskConfig)


def plain_model(model: Model, *, biases: bool = False) -> Model:
    """It returns the settings of the model that computes the same with dense matrices and without padding.

    `biases` gives it biases: those that it lacks are zero.
    """
    changes: dict[str, object] = {}
    if isinstance(model, VocabularyConfig):
        changes["vocabulary_multiple"] = 1
    if isinstance(model, TransformerConfig):
        kept = model.attention.model_dump(include={"num_heads", "num_key_value_heads", "dropout"})
        changes |= {
            "attention": AttentionConfig(**kept),
            "reparametrization": "none",
            "bias": model.bias or biases,
        }
    return model.model_copy(update=changes)


class PlainTensors:
    """These are the tensors of the plain model, computed from those that were saved as they are read.

    The arithmetic is that of training: masters are rounded to the dtype first, then multiplied by gamma / sigma in it;
    products of factors are taken in fp32 and rounded.
    """

    def __init__(
        self, saved: TensorSource, outline: Outline, plain: Outline, dtype: torch.dtype, *, folds: bool
    ) -> None:
        """`outline` is that of the model that was saved, `plain` that of its plain model; `folds` tells whether the
        model computes with gamma / sigma, or has merely followed sigma. What is read of `saved` is not changed."""
        self._saved, self._outline, self._plain = saved, outline, plain
        self._dtype, self._folds = dtype, folds

    @property
    def names(self) -> list[str]:
        """These are the names of all tensors, in the order of the layers."""
        return list(self._plain.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """It returns the shape of a tensor."""
        return self._plain.tensors[name].shape

    def read(self, name: str) -> Tensor:
        """It returns a tensor in the dtype. Raises what the saved tensors raise."""
        shape = self.shape(name)
        if name in self._outline.tensors:
            return self._effective(name)[: shape[0]]
        stem, _, part = name.rpartition(".linear.")
        if stem and f"{stem}.up.0.{part}" in self._outline.tensors:
            return self._product(stem) if part == "weight" else self._stacked(f"{stem}.up", part)
        return torch.zeros(shape, dtype=self._dtype)

    def _effective(self, name: str) -> Tensor:
        """It returns a saved tensor as the model computes with it."""
        tensor = self._saved.read(name).to(self._dtype)
        gammas, sigmas = (f"{name.removesuffix('weight')}spectral.{part}_K" for part in ("gamma", "sigma"))
        if self._folds and gammas in self._outline.tensors:
            factors = (self._saved.read(gammas) / self._saved.read(sigmas)).tolist()
            rows = self._outline.tensors[name].stacked or tensor.shape[:1]
            folded = torch.empty_like(tensor)
            for matrix, target, factor in zip(tensor.split(rows), folded.split(rows), factors, strict=True):
                torch.mul(matrix, factor, out=target)
            return folded
        return tensor

    def _product(self, stem: str) -> Tensor:
        """It returns the dense matrices U D of low-rank attention, stacked."""
        down = self._effective(f"{stem}.down.weight")
        downs = down.split(self._outline.tensors[f"{stem}.down.weight"].stacked)
        ups = (self._effective(f"{stem}.up.{number}.weight") for number in range(len(downs)))
        return torch.cat([(u.float() @ d.float()).to(self._dtype) for u, d in zip(ups, downs, strict=True)])

    def _stacked(self, stem: str, part: str) -> Tensor:
        names = [
            name
            for name in self._outline.tensors
            if name.startswith(f"{stem}.") and name.endswith(f".{part}")
        ]
        return torch.cat([self._effective(name) for name in names])
