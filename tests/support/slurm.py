"""A Slurm cluster of one node runs on this machine, with a configuration, a key, ports and logs of its own.

It needs root and the programs of Debian's slurmctld, slurmd, slurm-client and munge. The daemons stay in the
foreground, as processes of the test; nothing of a Slurm that this machine may belong to is read or touched.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.scripts import Place

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged")
SECONDS = 60.0
CONFIGURATION = """
ClusterName={name}
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=bf_interval=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 CoresPerSocket=8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""The node may be smaller than it says (config_overrides). A job that is requeued waits until the credential of its
last start has expired, by default for two minutes."""


def why_not() -> str:
    """It returns the reason why there can be no cluster here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root for Slurm's daemons"
    missing = [program for program in PROGRAMS if not shutil.which(program, path=search_path())]
    return f"needs {', '.join(missing)}" if missing else ""


def search_path() -> str:
    """Daemons are not on everybody's path."""
    return f"{os.environ['PATH']}:/usr/sbin"


needs_slurm = pytest.mark.skipif(bool(why_not()), reason=why_not())


@dataclass(frozen=True)
class Slurm:
    """The cluster runs; commands that have its variables talk to it."""

    folder: Path
    variables: Mapping[str, str]

    def output(self, *words: str) -> str:
        """It returns what one of Slurm's commands prints."""
        done = subprocess.run(
            words,
            env={**os.environ, **self.variables, "PATH": search_path()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """It returns the state of a job, such as RUNNING."""
        return self.facts(job).partition("JobState=")[2].split()[0]

    def facts(self, job: str) -> str:
        """It returns what the controller knows of a job."""
        return self.output("scontrol", "show", "job", job)

    def submit(self, place: Place, script: Path, *options: str) -> str:
        """It submits a script in a place, to write `SCRIPT-JOB.log` there, and returns the number of its job."""
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={script.stem}-%j.log", *options, str(script)],
            env={**place.environment, **self.variables},
            cwd=place.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def wait_for_state(self, job: str, *states: str) -> str:
        """It waits until a job is in one of these states, and returns which."""
        wait_for(lambda: self.state(job) in states, self.folder, 4 * SECONDS)
        return self.state(job)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """It starts the daemons, and ends them with all that runs below them."""
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    write_configuration(folder)
    with ExitStack() as stack:

        def daemon(*words: str) -> None:
            log = stack.enter_context((folder / f"{words[0]}.log").open("wb"))
            process = subprocess.Popen(
                words,
                env={**os.environ, **variables, "PATH": search_path()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(end, process)

        daemon(*munged(folder))
        wait_for((folder / "munge.socket").exists, folder)
        daemon("slurmctld", "-D")
        daemon("slurmd", "-D", "-N", "localhost")
        cluster = Slurm(folder, variables)
        wait_for(lambda: cluster.output("sinfo", "-h", "-o", "%T") == "idle", folder)
        stack.callback(cancel_all, cluster)
        yield cluster


def write_configuration(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    controller, daemon = free_ports()
    facts = {"name": f"test{os.getpid()}", "host": socket.gethostname(), "folder": folder}
    text = CONFIGURATION.format(**facts, controller=controller, daemon=daemon)
    (folder / "slurm.conf").write_text(text)


def munged(folder: Path) -> Iterator[str]:
    """It yields the command line of a munged of our own; `--force`, since others cannot enter its folder."""
    yield from ("munged", "--foreground", "--force", "--origin=127.0.0.1")
    for option, name in (
        ("socket", "socket"),
        ("key-file", "key"),
        ("pid-file", "pid"),
        ("seed-file", "seed"),
    ):
        yield f"--{option}={folder / f'munge.{name}'}"
    yield f"--log-file={folder / 'munge.log'}"


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def wait_for(condition: Callable[[], bool], folder: Path, seconds: float = SECONDS) -> None:
    """It waits until something is so; what daemons said is shown where that takes too long."""
    deadline = time.monotonic() + seconds
    while not holds(condition):
        if time.monotonic() > deadline:
            raise TimeoutError("\n".join(log.read_text(errors="replace") for log in folder.glob("*.log")))
        time.sleep(0.1)


def holds(condition: Callable[[], bool]) -> bool:
    """A controller that does not answer yet has not said yes."""
    try:
        return condition()
    except AssertionError:
        return False


def cancel_all(cluster: Slurm) -> None:
    """It ends all jobs; their processes would outlive the daemons."""
    cluster.output("scancel", "--signal=KILL", "--full", "--user=root")
    cluster.output("scancel", "--user=root")
    wait_for(lambda: cluster.output("squeue", "-h") == "", cluster.folder)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
