"""How much memory this rank takes: of its accelerator what torch has handed out, else what the process has."""

from pathlib import Path

import psutil
import torch


def memory_in_use(device: torch.device) -> int:
    """It returns bytes: of an accelerator the most so far, of a process what it has now."""
    return peak_memory(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """It returns the most bytes that were in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
