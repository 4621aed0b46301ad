"""Two ranks sum a number over gloo, and torch tells what it sees here; `surefoot doctor` runs this apart.

python -m pretrain.runtime.selftest      prints one JSON object; exit code 1 when the sum is wrong
"""

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn

from pretrain.runtime.kernels import detect_kernels

RANKS = 2
TIMEOUT = timedelta(seconds=30)


def sum_of_ranks(rank: int, rendezvous: str) -> None:
    """It all-reduces rank + 1, and raises RuntimeError when the sum is not 3."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS, timeout=TIMEOUT
    )
    number = torch.tensor(rank + 1)
    torch.distributed.all_reduce(number)
    torch.distributed.destroy_process_group()
    if number.item() != 3:
        raise RuntimeError(f"rank {rank}: 1 + 2 came out as {number.item()}")


def try_collective() -> str:
    """It runs both ranks and returns what went wrong, which is empty when nothing did."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(sum_of_ranks, (str(Path(folder) / "rendezvous"),), nprocs=RANKS)
        except Exception as error:  # whatever a child raised is the finding
            return str(error).strip().splitlines()[-1]
    return ""


def main() -> int:
    problem = try_collective()
    kernels = detect_kernels()
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    findings = {
        "collective": problem,
        "devices": devices,
        "cuda": torch.version.cuda or "",
        "kernels": f"{'apex' if kernels.fused_norms else 'torch'} fused Adam, {kernels.description}",
    }
    print(json.dumps(findings))
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
