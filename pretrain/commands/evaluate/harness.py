"""lm-evaluation-harness runs beside us, as a program of its own, on an export that is made for it and removed again."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data_pipeline.shown import shown
from pretrain.errors import ConfigurationError
from pretrain.export.export import export
from pretrain.export.foreign import SETTINGS
from pretrain.export.source import open_source

MODULE = "lm_eval"


def run_lm_eval(model: Path, tasks: Sequence[str], more: Sequence[str]) -> int:
    """It evaluates a model on tasks of the harness, which prints the outcome, and returns its exit code. `more` are
    options of its own.

    Raises:
        ConfigurationError: it is not installed, or Hugging Face has no architecture for the model.
        CheckpointError: there is no usable checkpoint, or no room for the export.
    """
    if find_spec(MODULE) is None:
        raise ConfigurationError(
            f"--lm-eval: {MODULE} is not installed beside Surefoot ({sys.executable}); pip install 'lm_eval[hf]'"
        )
    with tempfile.TemporaryDirectory(prefix="surefoot-") as scratch:
        folder = Path(scratch) / "model"  # a name without commas, at which the harness would cut
        if (model / SETTINGS).exists():
            folder.symlink_to(model.absolute())
        else:
            export(open_source(model), "huggingface", folder)
        print(f"surefoot evaluate: {shown(model)}, by {MODULE}", file=sys.stderr)
        return harness(folder, tasks, more)


def harness(folder: Path, tasks: Sequence[str], more: Sequence[str]) -> int:
    """It runs the program on a folder of Hugging Face's."""
    command = [sys.executable, "-P", "-m", MODULE, "--model", "hf", "--model_args", f"pretrained={folder}"]
    return subprocess.run([*command, "--tasks", ",".join(tasks), *more], check=False).returncode
