"""The fixtures bite without `weights_only` and do nothing with it: what other tests rely on."""

import contextlib
import io
from pathlib import Path

import pytest
import torch
from support.malicious_pickle import malicious_files

TRICKS = sorted(malicious_files(Path("canary")))


@pytest.mark.parametrize("trick", TRICKS)
def test_trick_works_on_an_unsafe_load(tmp_path: Path, trick: str) -> None:
    canary = tmp_path / "canary"
    with contextlib.suppress(RuntimeError):  # that this is no torch file comes up too late
        torch.load(io.BytesIO(malicious_files(canary)[trick]), weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("trick", TRICKS)
def test_trick_is_stopped_by_weights_only(tmp_path: Path, trick: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(Exception, match=r"(?i)weights"):
        torch.load(io.BytesIO(malicious_files(canary)[trick]), weights_only=True)
    assert not canary.exists()
