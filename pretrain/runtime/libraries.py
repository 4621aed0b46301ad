"""It tells which optional libraries of fused kernels are installed, or why not, without importing them."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Library:
    """It says whether an optional library of kernels is usable."""

    usable: bool
    description: str
    """Its version, or why it is not usable."""


def find_apex() -> Library:
    """NVIDIA's apex has a folder of optimizers and compiled `amp_C`; PyPI's `apex` is a web toolkit."""
    spec = find_spec("apex")
    if spec is None:
        return Library(False, "not installed")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "optimizers").is_dir() for folder in folders):
        return Library(False, "PyPI's apex, a toolkit for Pyramid that has nothing to do with NVIDIA's")
    if find_spec("amp_C") is None:
        return Library(False, "NVIDIA's, but built without its CUDA extensions (no amp_C)")
    return Library(True, f"NVIDIA's {installed_version('apex')}")


def find_transformer_engine() -> Library:
    return find_library("transformer_engine", "transformer-engine")


def find_flash_attention() -> Library:
    """It looks for the package flash-attn; torch has flash attention of its own."""
    return find_library("flash_attn", "flash-attn")


def find_library(module: str, distribution: str) -> Library:
    """It says whether a module can be found, and its version."""
    if find_spec(module) is None:
        return Library(False, "not installed")
    return Library(True, installed_version(distribution))


def installed_version(distribution: str) -> str:
    """It returns the version of an installed distribution, `unknown` where its metadata is missing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
