"""The task is translation with an encoder-decoder."""

from collections.abc import Callable

from data_pipeline.source import Companion
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.source import TranslationSource
from parallel.cross_entropy import Smoothing
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from pretrain.models.context import LayerContext, Materials
from pretrain.models.depth import decoder_of, encoder_of
from pretrain.tasks.next_token import NextToken, Perplexity, UnsmoothedPerplexity
from pretrain.tasks.task import Metric, Objective, Task
from pretrain.tasks.translation.config import TranslatorConfig
from pretrain.tasks.translation.examples import Translations
from pretrain.tasks.translation.model import translation_layers
from pretrain.tasks.translation.text import PairCodec
from pretrain.tasks.translation.translator import PairTranslator
from pretrain.tasks.translator import Translator


class Translation(Task[TranslatorConfig]):
    """The task trains a model that predicts the next token of a translation from the source and the tokens before."""

    source = TranslationSource()

    def layers(
        self, model: TranslatorConfig, data: TranslationConfig, materials: Materials
    ) -> list[LayerSpec]:
        """It lists embedding, positions, blocks and norm of either side, and the head."""
        encoder, decoder = model.encoder_layers, model.decoder_layers
        return translation_layers(
            LayerContext(model.encoder, materials, encoder_of(encoder, decoder)),
            LayerContext(model.decoder, materials, decoder_of(decoder)),
            (model.source, model.target),
            (data.max_source_length, data.max_target_length),
        )

    def objective(self, model: TranslatorConfig, mesh: ParallelMesh) -> Objective:
        """It is the cross-entropy with smoothed targets."""
        return NextToken(mesh.tensor, Smoothing(model.label_smoothing, model.target_vocabulary_size))

    def validation_loss(self, model: TranslatorConfig, mesh: ParallelMesh) -> Objective:
        """It is the negative log-likelihood of the targets themselves, however they are smoothed in training."""
        return NextToken(mesh.tensor)

    def metrics(
        self, model: TranslatorConfig, mesh: ParallelMesh, companion: Companion
    ) -> tuple[Metric, ...]:
        """Validation reports the perplexity; training as well where its loss is that of validation."""
        return (UnsmoothedPerplexity() if model.label_smoothing else Perplexity(),)

    def translator(
        self, model: TranslatorConfig, data: TranslationConfig, companion: Callable[[str], bytes]
    ) -> Translator:
        """It reads and writes with the tokenizers of its data."""
        return PairTranslator(codec_of(model, companion), data)

    def examples(
        self,
        model: TranslatorConfig,
        data: TranslationConfig,
        mesh: ParallelMesh,
        companion: Callable[[str], bytes],
    ) -> Translations:
        """They are translations by greedy search."""
        vocabulary, longest = model.target_vocabulary_size, data.max_target_length
        return Translations(codec_of(model, companion), vocabulary, longest, mesh.tensor)


def codec_of(model: TranslatorConfig, companion: Callable[[str], bytes]) -> PairCodec:
    """It returns what turns the sentences of a model into ids and back. Raises DataError."""
    return PairCodec(companion, (model.source_vocabulary_size, model.target_vocabulary_size))
