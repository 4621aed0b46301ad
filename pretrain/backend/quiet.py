"""DeepSpeed prints and warns on its own (seen in 0.19.8); this keeps it quiet: the metrics logger speaks for a run."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from deepspeed.utils import logger

# Of updates that we withhold, finite ones too (0.19.8 has no other way to skip a step); the run tells why.
logger.addFilter(lambda record: "OVERFLOW! Skipping step" not in record.getMessage())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, what DeepSpeed prints goes to its logger at debug level, and the logger keeps to warnings."""
    logger.setLevel(logging.WARNING)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logger.debug(line)


def silence_known_warnings() -> None:
    """It silences warnings that DeepSpeed causes and whoever trains can do nothing about."""
    # It calls collectives by names that torch 2.13 is about to rename.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # PipelineModule broadcasts tied weights without no_grad, at start and after a load.
    warnings.filterwarnings("ignore", r"c10d::broadcast_: an autograd kernel was not registered", UserWarning)
