"""Every rank of a run starts here, under `deepspeed --module`, `torchrun -m` or `srun`.

python -m pretrain CONFIG [--set section.key=value]...
"""

from pretrain.runtime.startup import begin

begin()  # before anything else is imported

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from data_pipeline.errors import DataError
from parallel.mesh import ParallelMesh, describe_world, is_peer_loss
from pretrain.config.loader import load_config
from pretrain.errors import DATA_EXIT_CODE, PeerLost, SurefootError
from pretrain.fault_injection.plan import FaultPlan
from pretrain.plan.plan import plan
from pretrain.recovery.resume import Request
from pretrain.run import train
from pretrain.runtime.signals import StopSignals


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pretrain", description="Train one rank of a run.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--resume", metavar="TAG", help="go on from this checkpoint, in a new lineage")
    parser.add_argument("--force-condemned", action="store_true", help="even if it is condemned")
    parser.add_argument("--fault", metavar="PLAN", help="plant a fault, as `surefoot rehearse` does")
    # The deepspeed launcher appends it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run this rank and return its exit code."""
    options = parse(arguments)
    world = describe_world()
    try:
        with StopSignals() as signals, ExitStack() as stack:
            config = load_config(options.config, options.overrides)
            plan(config, int(world["WORLD_SIZE"]))  # what cannot work is named before the ranks meet
            request = Request(
                tag=options.resume,
                force_condemned=options.force_condemned,
                fault=FaultPlan.parse(options.fault, config.run.steps) if options.fault else None,
                port=int(world["MASTER_PORT"]),
            )
            train(config, ParallelMesh.create(config.parallel), signals, stack, request=request)
        return 0
    except (SurefootError, DataError) as error:
        code = DATA_EXIT_CODE if isinstance(error, DataError) else error.exit_code
        if world["RANK"] == "0":  # all ranks have the same error
            print(f"surefoot: {error}", file=sys.stderr, flush=True)
        return code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not is_peer_loss(error):
            traceback.print_exc()
            return 1
        print(f"surefoot: lost another rank: {error}", file=sys.stderr, flush=True)
        return PeerLost.exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Communicators of a world that has lost a rank wait for it when they are torn down.
    os._exit(code)
