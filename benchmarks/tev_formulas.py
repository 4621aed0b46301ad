"""What two formulas of TEV see of a drift of the embedding table.

    python benchmarks/tev_formulas.py runs/NAME/checkpoints/TAG/mp_rank_00_model_states.pt

The table of a checkpoint (one rank, no ZeRO-3) drifts as the fault `tev_drift` has it: at every step 0.2 % of one
random vector, whose entries have five times the deviation of usual initial weights, is added to all rows. Columns:
  TEV          mean over tokens of the standard deviation over hidden dimensions (arXiv 2409.07787)
  transposed   mean over hidden dimensions of the standard deviation over tokens, as BioNeMo's callback has it: a vector
               that all rows take up cannot change it
  mean row     how far the mean row has moved, root mean square

V  vocabulary, D  hidden size
"""

import argparse
from pathlib import Path

import torch
from pretrain.backend.checkpoint_io import load_plain
from torch import Tensor

from pretrain.fault_injection.memory import COMMON_VECTOR, DRIFT

STEPS = (0, 1, 10, 25, 50, 100)


def table_of(path: Path) -> Tensor:
    """The embedding table in a file of weights, in float64; (V, D)."""
    weights = load_plain(path)["module"]  # type: ignore[index]
    (name,) = [name for name in weights if name.endswith("0.weight") and weights[name].dim() == 2]
    table_VD: Tensor = weights[name].double()
    return table_VD


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    options = parser.parse_args()
    table_VD = table_of(options.weights)
    generator = torch.Generator().manual_seed(0)
    step_D = torch.randn(table_VD.shape[1], generator=generator).double() * COMMON_VECTOR * DRIFT
    tev, transposed = table_VD.std(1, correction=0).mean(), table_VD.std(0, correction=0).mean()
    print(f"TEV {tev:.5f}, transposed {transposed:.5f}, of {tuple(table_VD.shape)}")
    print("| steps of drift | TEV | transposed | mean row |")
    print("| --: | --: | --: | --: |")
    for steps in STEPS:
        drifted_VD = table_VD + steps * step_D
        now, other = drifted_VD.std(1, correction=0).mean(), drifted_VD.std(0, correction=0).mean()
        moved = (drifted_VD.mean(0) - table_VD.mean(0)).square().mean().sqrt()
        print(f"| {steps} | {now / tev - 1:+.3%} | {other / transposed - 1:+.3%} | {moved:.6f} |")


if __name__ == "__main__":
    main()
