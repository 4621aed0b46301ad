"""Next-token prediction with a GPT as a task."""

from data_pipeline.config import DataConfig
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from pretrain.models.context import LayerContext, Materials
from pretrain.tasks.gpt.config import GPTConfig
from pretrain.tasks.gpt.metric import Perplexity
from pretrain.tasks.gpt.model import gpt_layers
from pretrain.tasks.gpt.objective import NextToken
from pretrain.tasks.task import Metric, Objective, Task


class GPT(Task[GPTConfig]):
    """A decoder-only language model."""

    def layers(self, model: GPTConfig, data: DataConfig, materials: Materials) -> list[LayerSpec]:
        """Embedding, positions, blocks, final norm, head."""
        return gpt_layers(LayerContext(model, materials), model, data.sequence_length)

    def objective(self, model: GPTConfig, mesh: ParallelMesh) -> Objective:
        """The negative log-likelihood of the next token."""
        return NextToken(mesh.tensor)

    def metrics(self, model: GPTConfig, mesh: ParallelMesh) -> tuple[Metric, ...]:
        """Perplexity."""
        return (Perplexity(),)
