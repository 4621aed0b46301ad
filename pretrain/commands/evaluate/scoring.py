"""`surefoot evaluate` scores what a model predicts, where people can read that."""

import argparse
from collections.abc import Callable

from pretrain.commands.searches import decoding_of, search_of
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable
from pretrain.inference.model import LoadedModel
from pretrain.inference.transcribe import TranscriptScoring
from pretrain.inference.translate import Batching, SentenceTranslator, TranslationScoring
from pretrain.tasks.registry import TASKS
from pretrain.tasks.scores import Scoring

OF_TRANSLATIONS = ("beam", "length_penalty")
OF_TRANSCRIPTS = ("beam", "lm", "lm_weight", "word_bonus", "alignments")

Scored = Callable[[LoadedModel], Scoring]
"""It makes what scores the predictions of a model."""


def scoring_of(checkpoint: Usable, options: argparse.Namespace) -> Scored | None:
    """It returns how predictions are scored; none: there are to be none, or none that people would read.

    Raises:
        ConfigurationError: options are for other models, or kenlm is missing.
        DataError: a language model, or a file that goes with the model, cannot be read.
    """
    scored, fitting = (None, ()) if options.loss_only else _of_task(checkpoint, options)
    kind = checkpoint.config.model.kind
    why = "with --loss-only" if options.loss_only else f"for a model of kind {kind}"
    for name in (*OF_TRANSLATIONS, *OF_TRANSCRIPTS):
        if getattr(options, name) is not None and name not in fitting:
            raise ConfigurationError(f"--{name.replace('_', '-')}: means nothing {why}; leave it out")
    return scored


def _of_task(checkpoint: Usable, options: argparse.Namespace) -> tuple[Scored | None, tuple[str, ...]]:
    """It returns how predictions are scored, and which options say so."""
    model, data, companion = checkpoint.config.model, checkpoint.config.data, checkpoint.companion
    task = TASKS[model.kind]
    if translator := task.translator(model, data, companion):

        def translations(loaded: LoadedModel) -> Scoring:
            sentences = SentenceTranslator(loaded, translator, search_of(options), Batching())
            return TranslationScoring(sentences, translator)

        return translations, OF_TRANSLATIONS
    if transcriber := task.transcriber(model, data, companion, decoding_of(options)):
        return lambda loaded: TranscriptScoring(transcriber), OF_TRANSCRIPTS
    return None, ()
