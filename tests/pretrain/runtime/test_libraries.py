"""Optional kernel libraries are told apart without importing them."""

from pathlib import Path

import pytest
import torch

from pretrain.runtime.kernels import detect_kernels, why_not_apex
from pretrain.runtime.libraries import Library, find_apex, find_library


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path whose modules raise when they are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def add_package(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise ImportError('must not be imported')")


def test_the_unrelated_apex_is_named_as_such(packages: Path) -> None:
    add_package(packages, "apex")
    found = find_apex()
    assert not found.usable
    assert "Pyramid" in found.description


def test_nvidias_apex_needs_its_extensions(packages: Path) -> None:
    add_package(packages, "apex")
    add_package(packages, "apex/optimizers")
    assert "amp_C" in find_apex().description
    (packages / "amp_C.py").touch()
    assert find_apex().usable


def test_absent_library() -> None:
    assert find_library("no_such_module_at_all", "no-such") == Library(False, "not installed")


def test_reasons_not_to_use_apex() -> None:
    assert why_not_apex(Library(True, "1.0"), cuda=True) == ""
    assert why_not_apex(Library(True, "1.0"), cuda=False) == "no CUDA device"
    assert why_not_apex(Library(False, "not installed"), cuda=True) == "not installed"


@pytest.mark.skipif(find_apex().usable, reason="apex is installed here")
def test_torch_is_used_where_apex_is_not() -> None:
    kernels = detect_kernels()
    assert kernels.norm("layer_norm") is torch.nn.LayerNorm
    assert kernels.norm("rms_norm") is torch.nn.RMSNorm
    assert "apex: not installed" in kernels.description
