"""Time limits, cancelled jobs, arrays, two steps of one job, launchers of `surefoot train`, torchrun, containers."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from support import host_pair as pairs
from support import two_hosts
from support.open_mpi import needs_mpirun
from support.scripts import SECONDS, Place, make_place
from support.slurm import Slurm, needs_slurm

needs_hosts = pytest.mark.skipif(bool(two_hosts.why_not()), reason=two_hosts.why_not())
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root to become another user in other namespaces"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@needs_slurm
def test_a_time_limit_requeues(cluster: Slurm, place: Place) -> None:
    """Slurm looks at limits every half minute, so it signals 80 to 110 seconds after the start."""
    place.configure("limit")
    (place.folder / "run.toml").write_text(place.log("run.toml").replace("steps = 80", "steps = 1000000"))
    script = place.script("slurm.sh", {"24:00:00": "00:03:00", "USR1@300": "USR1@100"})
    job = cluster.submit(place, script)
    place.wait_for_record("limit", "preempted")
    assert cluster.wait_for_state(job, "PENDING") == "PENDING"
    assert "Restarts=1 " in cluster.facts(job)
    cluster.output("scancel", job)


@needs_slurm
def test_a_cancelled_job_is_sealed_and_stays_away(cluster: Slurm, place: Place) -> None:
    place.configure("cancelled")
    job = cluster.submit(place, place.script("slurm.sh"))
    place.wait_for_steps("cancelled", 5)
    cluster.output("scancel", job)
    assert cluster.wait_for_state(job, "CANCELLED", "PENDING", "COMPLETED") == "CANCELLED"
    place.wait_for_record("cancelled", "preempted")


@needs_slurm
def test_two_steps_of_a_job_do_not_meet(cluster: Slurm, place: Place) -> None:
    place.configure("steps")
    job = cluster.submit(place, place.script("slurm-two.sh"))
    cluster.wait_for_state(job, "COMPLETED", "FAILED")
    for run in ("one", "two"):
        assert place.kinds("steps", run)[-1] == "done", place.log(f"slurm-two-{job}.log")
        assert place.differences("steps", run) == []


@needs_slurm
def test_an_array_trains_several_seeds(cluster: Slurm, place: Place) -> None:
    place.configure("array")
    job = cluster.submit(place, place.script("slurm-array.sh"))
    for task in ("1", "2"):
        cluster.wait_for_state(f"{job}_{task}", "COMPLETED", "FAILED")
        assert place.kinds("array", f"seed-{task}")[-1] == "done"
    assert place.differences("array", "seed-1") != place.differences("array", "seed-2")


@needs_slurm
@pytest.mark.parametrize("name", ["slurm-now.sh", "slurm-train.sh"])
def test_surefoot_train_through_slurm(cluster: Slurm, place: Place, name: str) -> None:
    """It works from a folder that is not the checkout's; a signal to it seals, and 75 comes back through `srun`."""
    run = name.partition(".")[0]
    place.configure(run)
    script = place.script("slurm-now.sh") if name == "slurm-now.sh" else place.script("slurm-train.sh")
    process = place.popen("bash", script, log=f"{run}.log", **cluster.variables)
    place.wait_for_steps(run, 5, process)
    signal_surefoot(process.pid)
    assert process.wait(SECONDS) == 75, place.log(f"{run}.log")
    assert place.run("bash", script, log=f"{run}.log", **cluster.variables) == 0, place.log(f"{run}.log")
    assert place.differences(run) == []


@needs_slurm
def test_a_hostfile_names_nodes_to_slurm(cluster: Slurm, place: Place) -> None:
    place.configure("nodes")
    (place.folder / "hosts").write_text("localhost slots=2\n")
    words = ("surefoot", "train", "run.toml", "--launcher", "slurm", "--hostfile", "hosts")
    assert place.run(*words, log="nodes.log", **cluster.variables) == 0, place.log("nodes.log")
    assert place.differences("nodes") == []


@needs_mpirun
def test_surefoot_train_through_open_mpi(place: Place) -> None:
    place.configure("openmpi-train")
    script = place.script("openmpi-train.sh")
    process = place.popen("bash", script, log="openmpi-train.log")
    place.wait_for_steps("openmpi-train", 5, process)
    signal_surefoot(process.pid)
    assert process.wait(SECONDS) == 75, place.log("openmpi-train.log")
    assert place.run("bash", script, log="openmpi-train.log") == 0, place.log("openmpi-train.log")
    assert place.differences("openmpi-train") == []


def signal_surefoot(pid: int) -> None:
    """It sends SIGTERM to the `surefoot train` that a shell or `salloc` has started, or has become."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    os.kill(next(p.pid for p in family if "launch.cli" in " ".join(p.cmdline()[:3])), signal.SIGTERM)


@needs_hosts
@pytest.mark.parametrize("launcher", ["pdsh", pytest.param("openmpi", marks=needs_mpirun)])
def test_two_hosts(tmp_path: Path, launcher: str) -> None:
    """The script for pdsh trains over two hosts, and so does Open MPI, over the same ssh."""
    with pairs.host_pair(tmp_path) as hosts:
        (tmp_path / "run.toml").write_text((tmp_path / "pair.toml").read_text())
        text = Place(tmp_path, {}).script("pdsh.sh", {"10.0.0.1": hosts.addresses[0]}).read_text()
        words = text.split()
        assert words.pop(0) == "surefoot"
        if launcher == "openmpi":
            words = [*words[:-1], "--launcher", "openmpi"]
        variables = {
            **pairs.ENVIRONMENT,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        process = hosts.popen([*pairs.SUREFOOT, *words], variables, tmp_path / "log")
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
        local = hosts.popen(
            [*pairs.SUREFOOT, "train", "pair.toml", "--num-accelerators", "2", "--set", "run.name=local"],
            variables,
            tmp_path / "local.log",
        )
        assert local.wait(SECONDS) == 0, (tmp_path / "local.log").read_text()
        assert pairs.losses(tmp_path, "pair") == pairs.losses(tmp_path, "local")


def test_torchrun_comes_back_after_a_rank_was_killed(place: Place) -> None:
    place.configure("torchrun")
    text = place.log("run.toml").replace("every_steps = 1000000", "every_steps = 20")
    (place.folder / "run.toml").write_text(text)
    process = place.popen("bash", place.script("torchrun.sh"), log="torchrun.log", MASTER_PORT="0")
    place.wait_for_record("torchrun", "sealed", process)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "pretrain" in p.cmdline()]
    next(p for p in ranks if p.environ().get("RANK") == "1").kill()
    assert process.wait(SECONDS) == 0, place.log("torchrun.log")
    assert "resumed" in place.kinds("torchrun")
    assert place.differences("torchrun") == []


CONTAINER = """set -e
mount -t tmpfs -o size=64k tmpfs /dev/shm
exec setpriv --reuid 54321 --regid 54321 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search \\
    env -i {variables} bash {script}
"""
"""The first process of a container of its own: a tiny /dev/shm, a user without a name, no HOME, nothing inherited.

The interpreter may lie in a folder of root's: the user can read all, but write only where he may.
"""


@needs_root
def test_a_container(tmp_path: Path) -> None:
    """SIGTERM to the first process seals within the grace period, and the next container goes on to the bit."""
    place = make_place(tmp_path)
    place.configure("volume/container")
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume").chmod(0o777)
    given = ("PATH", "PYTHONPATH")
    variables = " ".join(f"{name}='{place.environment[name]}'" for name in given)
    inner = tmp_path / "inner.sh"
    inner.write_text(CONTAINER.format(variables=variables, script=place.script("container.sh")))
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", str(inner)]
    process = place.popen(*words, log="container.log")
    place.wait_for_steps("volume/container", 5, process)
    (first,) = psutil.Process(process.pid).children()
    first.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 75, place.log("container.log")
    assert place.run(*words, log="container.log") == 0, place.log("container.log")
    assert place.differences("volume/container") == []
