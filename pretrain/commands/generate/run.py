"""`surefoot generate` loads a model, tells which, and writes text."""

import argparse
import secrets
import sys
from itertools import chain

from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.shown import shown
from parallel.mesh import ParallelMesh
from pretrain.commands.output import write
from pretrain.errors import ConfigurationError
from pretrain.export.opened import open_model, told
from pretrain.inference.generate import continuation
from pretrain.inference.model import load_model
from pretrain.inference.sampling import Sampling
from pretrain.tasks.registry import TASKS

SEEDS = 2**32
"""A seed that nobody has asked for is below it: it is to be copied."""


def run(options: argparse.Namespace) -> int:
    """It writes the prompt and what follows it."""
    prompt = read_prompt(options)
    checkpoint = open_model(options.model)
    config = checkpoint.config
    codec = TASKS[config.model.kind].text(config.model, config.data, checkpoint.companion)
    if codec is None:
        raise ConfigurationError(
            f"{shown(checkpoint.folder)}: holds a model of kind {config.model.kind}, which is none that writes text"
        )
    seed = secrets.randbelow(SEEDS) if options.seed is None else options.seed
    print(f"surefoot generate: {told(options.model, checkpoint)}, --seed {seed}", file=sys.stderr)
    model = load_model(
        config.model, config.data, config.precision.dtype, checkpoint.tensors, ParallelMesh.alone()
    )
    sampling = Sampling(options.temperature, options.top_k, options.top_p, seed)
    write(chain([prompt], continuation(model, codec, prompt, sampling, options.max_tokens)))
    return 0


def read_prompt(options: argparse.Namespace) -> str:
    """It returns what the text begins with; empty: nothing was given.

    Raises:
        ConfigurationError: it is no text.
    """
    with parsed_as(ConfigurationError, "--prompt" if options.file is None else f"--file {options.file}"):
        if options.file is None:
            prompt = options.prompt or ""
            prompt.encode()  # a shell passes on any bytes
            return prompt
        try:
            return read_whole(options.file).decode()
        except OSError as error:
            raise ConfigurationError(f"--file {shown(options.file)}: {error.strerror}") from error
