"""Scripts of docs/clusters.md run under the real Slurm and Open MPI; runs end as undisturbed ones do, to the bit."""

import re
import signal
from pathlib import Path

import pytest
from support.open_mpi import needs_mpirun, signal_mpirun
from support.scripts import SECONDS, Place, scripts
from support.slurm import Slurm, needs_slurm

pytestmark = pytest.mark.timeout(900)


@needs_slurm
def test_a_requeued_job_ends_as_an_undisturbed_run_does(cluster: Slurm, place: Place) -> None:
    """What Slurm does ahead of the time limit is done here by hand: every rank is signalled."""
    place.configure("requeued")
    job = cluster.submit(place, place.script("slurm.sh"))
    place.wait_for_steps("requeued", 5)
    cluster.output("scancel", "--signal=USR1", f"{job}.0")
    place.wait_for_steps("requeued", 81)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED"
    log = place.log(f"slurm-{job}.log")
    assert "Restarts=1 " in cluster.facts(job)
    kinds = place.kinds("requeued")
    assert [kind for kind in kinds if kind in ("run_start", "preempted", "resumed", "done")] == [
        *("run_start", "preempted", "resumed", "done")
    ], log
    assert place.differences("requeued") == []
    assert log.count("each of the 2 ranks of a host computes with 1 thread") == 2, "said once by each session"


@needs_slurm
@pytest.mark.slow
def test_scripts_of_a_job_are_no_ranks(cluster: Slurm, place: Place) -> None:
    """Without `srun` there is one rank; `surefoot train` starts its own. Neither waits for tasks that never come."""
    place.configure("script")
    script = place.folder / "plain.sh"
    script.write_text(
        "#!/bin/bash\n"
        "python -m pretrain run.toml --set parallel.tensor=1 --set run.steps=3 --set run.name=alone || exit\n"
        "surefoot train run.toml --num-accelerators 2 --set run.steps=3\n"
    )
    job = cluster.submit(place, script, "--ntasks=2")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", place.log(f"plain-{job}.log")
    log = place.log(f"plain-{job}.log")
    assert "trains as the only rank, though the job has 2 tasks" in log
    assert "1 x CPU" in log
    assert "2 x CPU" in log


@needs_mpirun
@pytest.mark.slow
def test_mpirun_stops_at_a_signal_and_resumes_to_the_bit(place: Place) -> None:
    place.configure("mpirun")
    script = place.script("openmpi.sh")
    process = place.popen("bash", script, log="mpirun.log")
    place.wait_for_steps("mpirun", 5, process)
    signal_mpirun(process.pid, signal.SIGUSR1)
    assert process.wait(SECONDS) == 75, place.log("mpirun.log")
    assert place.run("bash", script, log="mpirun.log") == 0, place.log("mpirun.log")
    assert place.kinds("mpirun")[-1] == "done"
    assert place.differences("mpirun") == []


def test_every_script_of_the_document_is_run() -> None:
    """A block that no test names would rot; so would one without a name."""
    named = set(
        re.findall(r'script\("([^"]+)"', "".join(map(Path.read_text, Path(__file__).parent.glob("*.py"))))
    )
    assert set(scripts()) == named
