"""All ranks of a run must have these facts in common: they are compared before anything is built."""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

from pretrain.config.as_read import MAY_DIFFER
from pretrain.config.loader import settings
from pretrain.config.run import RunConfig
from pretrain.plan.plan import Plan
from pretrain.runtime.libraries import installed_version
from pretrain.runtime.search_path import ROOT

LIBRARIES = ("torch", "deepspeed", "megatron-core", "numpy", "sentencepiece")
PACKAGES = ("data_pipeline", "parallel", "pretrain")
DIGITS = 12


def rank_facts(config: RunConfig, layout: Plan, options: Mapping[str, str]) -> dict[str, str]:
    """It returns what a rank is about to do, by name; `options` are those of the command line beside the settings."""
    values = {key: value for key, value in settings(config).items() if key not in MAY_DIFFER}
    return {
        **{key: json.dumps(value) for key, value in values.items()},
        "weights of data.sources": json.dumps([source.weight for source in config.data.sources]),
        "DeepSpeed's configuration": digest(json.dumps(layout.deepspeed, sort_keys=True).encode()),
        **options,
        "Surefoot's sources": digest(*(path.read_bytes() for path in sources())),
        "python": platform.python_version(),
        **{name: installed_version(name) for name in LIBRARIES},
    }


def sources() -> list[Path]:
    """It returns the files that ranks run, in the same order on every host."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def digest(*contents: bytes) -> str:
    """It returns the first digits of a digest of several contents."""
    found = hashlib.sha256()
    for content in contents:
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()[:DIGITS]
