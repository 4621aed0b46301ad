"""The task is to transcribe speech with an encoder that is trained by CTC."""

from collections.abc import Callable

from data_pipeline.source import Companion
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.source import SpeechSource
from data_pipeline.speech.units import read_units
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from pretrain.models.context import LayerContext, Materials
from pretrain.tasks.speech.config import SpeechModelConfig, output_frames
from pretrain.tasks.speech.examples import Transcriptions
from pretrain.tasks.speech.model import speech_layers
from pretrain.tasks.speech.objective import CTC, UnitErrorRate
from pretrain.tasks.speech.transcriber import SpeechTranscriber
from pretrain.tasks.task import Metric, Objective, Task
from pretrain.tasks.transcriber import Decoding


class Speech(Task[SpeechModelConfig]):
    """The task trains a model that tells the units of a transcript from audio, wherever in it they are."""

    source = SpeechSource()

    def layers(self, model: SpeechModelConfig, data: SpeechConfig, materials: Materials) -> list[LayerSpec]:
        """It lists subsampling, positions, blocks, norm and head."""
        subsampling = model.subsampling
        return speech_layers(
            LayerContext(model, materials),
            data.mel_bins,
            subsampling,
            output_frames(data.max_frames, subsampling.stride),
            model.vocabulary_size,
        )

    def objective(self, model: SpeechModelConfig, mesh: ParallelMesh) -> Objective:
        """It is CTC's loss."""
        return CTC(model.subsampling.stride)

    def metrics(
        self, model: SpeechModelConfig, mesh: ParallelMesh, companion: Companion
    ) -> tuple[Metric, ...]:
        """Validation reports the errors of the likeliest units."""
        return (UnitErrorRate(model.subsampling.stride),)

    def transcriber(
        self,
        model: SpeechModelConfig,
        data: SpeechConfig,
        companion: Callable[[str], bytes],
        decoding: Decoding,
    ) -> SpeechTranscriber:
        """It hears recordings as its data was heard, and writes with the same units."""
        return SpeechTranscriber(data, model.subsampling.stride, read_units(companion), decoding)

    def examples(
        self,
        model: SpeechModelConfig,
        data: SpeechConfig,
        mesh: ParallelMesh,
        companion: Callable[[str], bytes],
    ) -> Transcriptions:
        """They are transcripts of the likeliest units."""
        return Transcriptions(data, model.subsampling.stride, read_units(companion))
