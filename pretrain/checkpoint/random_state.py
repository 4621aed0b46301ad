"""The random state of a process is held as plain values that `torch.load(weights_only=True)` reads.

Dropout and data order do not need it (they are pure functions of the step); it is kept for whatever else draws.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from parallel.initialization import derive_seed


def seed_generators(seed: int, rank: int) -> None:
    """It starts Python's, NumPy's and torch's generators from the run's seed, each rank's in its own place."""
    own = derive_seed(seed, "generators", rank)
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)


def capture_random_state() -> dict[str, Any]:
    """It returns the states of Python's, NumPy's and torch's generators, on the CPU and on this rank's device."""
    name, keys, *numpy_rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *numpy_rest),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """It undoes everything drawn since `capture_random_state`. It is called last: whatever else is restored may
    draw."""
    random.setstate(state["python"])
    name, keys, *numpy_rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *numpy_rest))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        torch.cuda.set_rng_state(state["device"])
