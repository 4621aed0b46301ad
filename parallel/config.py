"""These settings say how a run is spread over ranks."""

from pydantic import BaseModel, ConfigDict, Field

YEAR = 31_536_000
"""Seconds. Libraries count nanoseconds in 64 bits."""


class ParallelConfig(BaseModel):
    """Sizes of the parallel axes; the data axis is what the world size leaves over."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    tensor: int = Field(default=1, gt=0)
    """Tensor-parallel size (TP): ranks that share every weight matrix."""
    pipeline: int = Field(default=1, gt=0)
    """Pipeline-parallel size (PP): stages that the list of layers is cut into."""
    zero_stage: int = Field(default=1, ge=0, le=3)
    """ZeRO over data-parallel ranks: 0 none, 1 optimizer states, 2 and gradients, 3 and weights."""
    timeout_seconds: float = Field(default=600.0, gt=0, le=YEAR)
    """A collective that takes longer is taken for a lost peer (exit code 6)."""
    control_timeout_seconds: float = Field(default=120.0, gt=0, le=YEAR)
    """The same for the small per-step reduction on the control group, which notices a lost host early."""

    @property
    def model_size(self) -> int:
        """It counts the ranks that together hold one replica of the model."""
        return self.tensor * self.pipeline
