"""What the options of commands say about a search; what they leave open is as the search has it."""

import argparse
from typing import Any

from pretrain.errors import ConfigurationError
from pretrain.inference.search import Search
from pretrain.tasks.transcriber import Decoding


def search_of(options: argparse.Namespace) -> Search:
    """It returns how translations are found."""
    return Search(**_given(beam=options.beam, length_penalty=options.length_penalty))


def decoding_of(options: argparse.Namespace) -> Decoding:
    """It returns how transcripts are found. Raises ConfigurationError for options that lack their language model."""
    weights = {"--lm-weight": options.lm_weight, "--word-bonus": options.word_bonus}
    for option, value in weights.items():
        if value is not None and options.lm is None:
            raise ConfigurationError(f"{option}: is for a language model; give --lm FILE, or leave it out")
    return Decoding(
        **_given(
            beam=options.beam,
            language_model=options.lm,
            language_weight=options.lm_weight,
            word_bonus=options.word_bonus,
        )
    )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
