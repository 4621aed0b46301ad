"""What a run takes of this machine: memory beside the estimate, and where asked, a profile of some steps.

A profile lies in `profiles/step00000020-00000022_rank_00000` of the run folder: `trace.json.gz` for chrome://tracing or
https://ui.perfetto.dev, `memory.pickle` for https://pytorch.org/memory_viz, where there is an accelerator, and the
table of where a step goes. The ranks of the first replica have one each: those of other replicas do the same.
"""

import os
from pathlib import Path

import torch
from torch.profiler import profile

from data_pipeline.files import create_file, new_folder, remove, write_all
from parallel.mesh import ParallelMesh
from pretrain.metrics.logger import MetricsLogger
from pretrain.metrics.step_table import step_table
from pretrain.plan.plan import Plan
from pretrain.plan.profiled_steps import ProfiledSteps
from pretrain.run_folder import PROFILES
from pretrain.runtime.device_memory import peak_memory
from pretrain.runtime.run_folder_guard import folder_problem
from pretrain.runtime.units import in_units

SETTLED = 2
"""After so many steps optimizer states are there, and memory has been as full as it gets."""


class Profiler:
    """It is told when steps of this process begin and end; all ranks have one, and call it alike."""

    def __init__(
        self,
        steps: ProfiledSteps | None,
        run_folder: Path,
        layout: Plan,
        mesh: ParallelMesh,
        metrics: MetricsLogger,
    ) -> None:
        """`steps` are to be profiled; `layout` estimates memory."""
        self._steps, self._folder = steps, run_folder / PROFILES
        self._layout, self._mesh, self._metrics = layout, mesh, metrics
        self._taken = 0
        self._first, self._left = 0, len(steps) if steps else 0
        """The step that the profile has begun with, and how many are still to come."""
        self._profile: profile | None = None

    def begin(self, step: int) -> None:
        """A step begins: so may the profile of it."""
        if self._steps is None or self._first or not self._left or step < self._steps.first:
            return
        if step > self._steps.last:
            self._left = 0
            self._metrics.event(step - 1, f"--profile {self._steps}: that is over; nothing is profiled")
            return
        self._first = step
        self._left = self._steps.last - step + 1
        if not self._mesh.data.first:
            return
        with profile():  # what starts once, and takes seconds, is no part of a step
            pass
        if self._mesh.device.type == "cuda":
            torch.cuda.memory._record_memory_history(stacks="python")
        self._profile = profile()
        self._profile.start()

    def end(self, step: int) -> None:
        """A step has ended: memory is told once it has settled, and the profile after its last step."""
        self._taken += 1
        if self._taken == SETTLED:
            self._tell_memory(step)
        if self._first and self._left:
            self._left -= 1
            if not self._left:
                self._finish(step)

    def _tell_memory(self, step: int) -> None:
        estimate = self._layout.stages[self._mesh.pipeline.rank].memory.total
        found = self._mesh.gather((peak_memory(self._mesh.device), estimate))
        rank = max(range(len(found)), key=found.__getitem__)
        self._metrics.event(step, memory_line(rank, *found[rank], on_host=self._mesh.device.type == "cpu"))

    def _finish(self, step: int) -> None:
        """Write the profile, and tell the first rank's table. Others wait as patiently as for a checkpoint."""
        problem, lines = "", [""]
        if self._profile is not None:
            self._profile.stop()
            lines = list(step_table(self._profile.events() or []).lines())
            problem = self._write(self._profile, step, lines)
            self._profile = None
        for rank, text in enumerate(self._mesh.gather(problem)):
            if text:
                self._metrics.event(step, f"the profile of rank {rank} could not be written: {text}")
        self._metrics.event(step, f"profile of {self._steps} in {self._folder}: {lines[0]}")
        for line in lines[1:]:
            self._metrics.event(step, line)

    def _write(self, taken: profile, step: int, lines: list[str]) -> str:
        """Write what was found up to a step; returns what went wrong."""
        path = self._folder / f"step{self._first:08d}-{step:08d}_rank_{self._mesh.rank:05d}"
        try:
            if problem := folder_problem(self._folder):
                return problem
            if os.path.lexists(path):  # of an earlier session
                remove(path)
            with new_folder(path) as folder:
                taken.export_chrome_trace(str(folder / "trace.json.gz"))
                with create_file(folder / "table.txt") as file:
                    write_all(file.fileno(), "".join(f"{line}\n" for line in lines).encode())
                if self._mesh.device.type == "cuda":
                    torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))
        except OSError as error:
            return str(error)
        finally:
            if self._mesh.device.type == "cuda":
                torch.cuda.memory._record_memory_history(enabled=None)
        return ""


def memory_line(rank: int, peak: int, estimate: int, *, on_host: bool) -> str:
    """It tells the peak of memory beside the estimate, both in bytes, of the rank that has the highest one."""
    whose = f"the process of rank {rank}, with Python and its libraries" if on_host else f"rank {rank}"
    return f"peak memory {in_units(peak)} ({whose}); estimated were {in_units(estimate)}" + (
        "" if on_host else f", {peak / estimate:.2f} times as much was needed"
    )
