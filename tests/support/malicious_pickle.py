"""These checkpoint files run code when they are unpickled without care; all they do is to make a file."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import torch


class _Touch:
    """It unpickles by calling `Path(canary).touch()`."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self._canary,))


class _Evaluate(_Touch):
    """It unpickles by evaluating Python source."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (eval, (f"open({str(self._canary)!r}, 'w').close()",))


def malicious_files(canary: Path) -> dict[str, bytes]:
    """It returns names of tricks -> bytes of a file that `torch.load(..., weights_only=False)` is fooled by."""
    weights = {"weight": torch.ones(2, 2)}
    return {
        "zip": _torch_file(_Touch(canary)),
        "zip_eval": _torch_file(_Evaluate(canary)),
        "zip_beside_weights": _torch_file({"module": weights, "client_state": {"note": [_Touch(canary)]}}),
        "legacy": _torch_file({**weights, "x": _Touch(canary)}, _use_new_zipfile_serialization=False),
        "raw_pickle": pickle.dumps({"weight": _Evaluate(canary)}, protocol=2),
    }


def _torch_file(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
