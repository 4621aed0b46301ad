"""The task is next-token prediction with a GPT."""

from collections.abc import Callable

from data_pipeline.source import Companion
from data_pipeline.text.config import TextConfig
from data_pipeline.text.source import TextSource
from data_pipeline.text.tokenizer import TOKENIZER_FILE, Tokenizer
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from pretrain.models.context import LayerContext, Materials
from pretrain.tasks.gpt.architectures import GPT2, GPTNeoX, Llama
from pretrain.tasks.gpt.config import GPTConfig
from pretrain.tasks.gpt.model import gpt_layers
from pretrain.tasks.gpt.text import TokenizedText
from pretrain.tasks.next_token import NextToken, Perplexity
from pretrain.tasks.task import Metric, Objective, Task
from pretrain.tasks.text import TextCodec


class GPT(Task[GPTConfig]):
    """The task trains a decoder-only language model."""

    source = TextSource()
    architectures = (GPT2(), GPTNeoX(), Llama())

    def layers(self, model: GPTConfig, data: TextConfig, materials: Materials) -> list[LayerSpec]:
        """It lists embedding, positions, blocks, final norm and head."""
        return gpt_layers(LayerContext(model, materials), model, data.sequence_length)

    def objective(self, model: GPTConfig, mesh: ParallelMesh) -> Objective:
        """It is the negative log-likelihood of the next token."""
        return NextToken(mesh.tensor)

    def metrics(self, model: GPTConfig, mesh: ParallelMesh, companion: Companion) -> tuple[Metric, ...]:
        """Validation reports the perplexity."""
        return (Perplexity(),)

    def text(self, model: GPTConfig, data: TextConfig, companion: Callable[[str], bytes]) -> TextCodec:
        """It reads and writes with the tokenizer of its data."""
        tokenizer = Tokenizer.of_model(companion, TOKENIZER_FILE, model.vocabulary_size)
        return TokenizedText(tokenizer, data.sequence_length)
