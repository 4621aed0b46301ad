"""A run measures how sharp the place is that its weights are in, by the first step of its validation set.

That batch is the same at every look and in every layout; of training's there is none that comes back.
"""

from collections.abc import Callable

from data_pipeline.reading.stream import ValidationSet
from parallel.mesh import ParallelMesh
from pretrain.config.run import ProbesConfig
from pretrain.engine.curvature import Curvature
from pretrain.engine.targets import BatchesMissing
from pretrain.runtime.agreement import guarded, raise_first


class SharpnessProbe:
    """It looks at the weights that some steps begin with."""

    def __init__(
        self, config: ProbesConfig, curvature: Curvature, validation: ValidationSet | None, mesh: ParallelMesh
    ) -> None:
        self._config = config
        self._curvature = curvature
        self._validation = validation
        self._mesh = mesh

    def look(self, step: int, alive: Callable[[], None]) -> dict[str, float]:
        """It returns the measures of a step, by name, all ranks the same: none on most. `alive` is called every so
        often.

        Raises:
            DataError: the data of a rank, not necessarily this one, fails.
        """
        if not self._config.sharpness or step % self._config.sharpness_every_steps:
            return {}
        assert self._validation is not None, "a run without does not start"
        batches, problem = next(guarded(self._validation))
        try:
            found = self._curvature.look(batches, alive)
        except BatchesMissing:
            raise_first(self._mesh, problem)
            raise
        if found is None:
            return {"sharpness": float("nan")}
        return {"sharpness": found.value, "sharpness_residual": found.residual}
