"""Every rank of a run starts here, under `deepspeed --module`, `torchrun -m`, `srun` or `mpirun`.

python -m pretrain CONFIG [--set section.key=value]...
"""

from pretrain.runtime.search_path import leave_out_current_folder

leave_out_current_folder()  # before anything else of ours is imported

from pretrain.runtime.startup import begin

begin()  # before anything is imported that takes seconds

import argparse
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from data_pipeline.errors import DataError
from data_pipeline.paths import path_argument
from data_pipeline.shortage import lacks_memory, shortage
from data_pipeline.shown import CommandLine, masked, shown_lines
from parallel.interfaces import INTERFACE, loops_back
from parallel.mesh import ParallelMesh, is_peer_loss, launched_world, output_is_collected, share_failure
from parallel.rendezvous import Stopped
from parallel.world import World, WorldError
from pretrain.checkpoint.tag import requested
from pretrain.config.as_read import AsRead, load_as_read
from pretrain.config.run import RunConfig
from pretrain.errors import DATA_EXIT_CODE, ConfigurationError, PeerLost, Preempted, SurefootError
from pretrain.fault_injection.plan import FaultPlan
from pretrain.plan.facts import rank_facts
from pretrain.plan.plan import plan
from pretrain.plan.profiled_steps import ProfiledSteps
from pretrain.recovery.resume import Request
from pretrain.run import train
from pretrain.runtime.signals import StopSignals

REQUESTS = ("resume", "force_condemned", "fault", "profile")
"""Options that all ranks must have alike, beside the settings."""

LESS_MEMORY = (
    "a smaller data.micro_batch_size takes less memory; `surefoot check` estimates what a layout takes"
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(prog="python -m pretrain", description="Train one rank of a run.")
    parser.add_argument("config", type=path_argument)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--resume", metavar="TAG", help="go on from this checkpoint, in a new lineage")
    parser.add_argument("--force-condemned", action="store_true", help="even if it is condemned")
    parser.add_argument("--fault", metavar="PLAN", help="plant a fault, as `surefoot rehearse` does")
    parser.add_argument("--profile", metavar="STEPS", help="profile these steps, such as 20 or 20-22")
    parser.add_argument("--as-read", type=AsRead.parse, help=argparse.SUPPRESS)  # of `surefoot train`
    # The deepspeed launcher appends it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run this rank and return its exit code."""
    options = parse(arguments)
    try:
        world = launched_world()
    except WorldError as error:
        tell(error, aloud=True)
        return ConfigurationError.exit_code
    first = world.rank == 0
    tell(world.note, aloud=first and bool(world.note))
    try:
        with StopSignals(aloud=first) as signals, ExitStack() as stack:
            try:
                config, facts, request = understand(options, world)
            except SurefootError as error:
                tell(error, aloud=first)
                share_failure(str(error), world)
                return error.exit_code
            mesh = ParallelMesh.create(
                config.parallel, world, facts, asked_to_stop=lambda: signals.received is not None
            )
            signals.take_interrupts()
            train(config, mesh, signals, stack, request=request)
        return 0
    except (SurefootError, DataError) as error:  # all ranks have the same
        tell(error, aloud=first)
        return error.exit_code if isinstance(error, SurefootError) else DATA_EXIT_CODE
    except WorldError as error:
        tell("\n  ".join((str(error), *error.differences)), aloud=first or not error.differences)
        return ConfigurationError.exit_code
    except Stopped as stopped:
        tell(f"{stopped}; nothing was begun: the same command starts the run", aloud=first)
        return Preempted.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if lacking := shortage(error):
            remedy = f"; {LESS_MEMORY}" if lacks_memory(error) else ""
            tell(f"rank {world.rank} on {socket.gethostname()}: {lacking}{remedy}", aloud=True)
            return PeerLost.exit_code
        if not is_peer_loss(error):
            traceback.print_exc()
            return 1
        tell(f"lost another rank: {error}{_loop_back(error, world)}", aloud=True)
        return PeerLost.exit_code


def _loop_back(error: Exception, world: World) -> str:
    """It says so where a rank on another host was looked for on this one, as that had said."""
    if "remote=[127." not in str(error) or loops_back(world.address):
        return ""
    return (
        f"; a host gives its own name a loopback address: put another into its /etc/hosts, or set {INTERFACE} to its "
        "network interface"
    )


def understand(options: argparse.Namespace, world: World) -> tuple[RunConfig, dict[str, str], Request]:
    """Read what this rank is to do, and what all ranks must agree on; what cannot work is named before they meet.

    Raises:
        ConfigurationError: the configuration or the command line cannot work.
    """
    config, note = load_as_read(options.config, options.overrides, options.as_read)
    tell(note, aloud=world.rank == 0 and bool(note))
    layout = plan(config, world.size)
    facts = rank_facts(config, layout, {f"--{name}": str(vars(options)[name]) for name in REQUESTS})
    request = Request(
        tag=None if options.resume is None else requested(options.resume),
        force_condemned=options.force_condemned,
        fault=FaultPlan.parse(options.fault, config.run.steps) if options.fault else None,
        profile=ProfiledSteps.parse(options.profile, config.run.steps) if options.profile else None,
        port=world.port,
        attended=not output_is_collected(),
    )
    return config, facts, request


def tell(text: object, *, aloud: bool) -> None:
    """Print a message for people, on ranks that are to speak; whether anybody reads it changes nothing."""
    if aloud:
        with suppress(OSError, ValueError):
            print(f"surefoot: {shown_lines(masked(text))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with suppress(OSError):  # nobody reads it any more: that is no fault of the run
        sys.stdout.flush()
    # Communicators of a world that has lost a rank wait for it when they are torn down.
    os._exit(code)
