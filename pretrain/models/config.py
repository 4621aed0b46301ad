"""The layers in this room share these settings, whatever task they serve."""

from typing import Literal

from pydantic import Field

from pretrain.section import Section


class AttentionConfig(Section):
    """Self-attention of one block."""

    kind: Literal["dense", "mlra"] = "dense"
    """Projections to queries, keys and values: one matrix each, or a product of two, `mlra` (Multi-head Low-Rank
    Attention, arXiv 2409.07787); the keys below that say so are for `mlra` alone."""
    num_heads: int = Field(gt=0)
    """Query heads."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Key and value heads (grouped-query attention); none: as many as query heads."""
    rank: int | None = Field(default=None, gt=0)
    """`mlra`: rank r of the products; none: hidden_size // 2, which leaves the number of parameters as it is (with
    as many key and value heads as query heads)."""
    init: Literal["gpt2", "xavier", "variance_matched"] = "gpt2"
    """`mlra`: initial factors: N(0, init_std^2) both; Xavier normal each; or such that the product has the variance of
    a dense matrix, init_std^2 (the control: without it, low rank also means smaller initial outputs)."""
    down_projection: Literal["replicated", "sharded"] = "replicated"
    """`mlra`: the factors next to the input whole on every tensor-parallel rank, or cut by their rows."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the attention probabilities."""


class CapeConfig(Section):
    """Continuous augmented positional embeddings (arXiv 2106.03143): sinusoidal positions that training moves, so that
    a model learns distances. Each sequence is shifted and stretched, each of its positions shifted by itself."""

    global_shift: float = Field(default=1000.0, ge=0)
    """Positions by which a sequence is shifted at most, back or forth."""
    local_shift: float = Field(default=0.5, ge=0)
    """Positions by which one of them is shifted at most, back or forth."""
    global_scale: float = Field(default=1.0, ge=1)
    """A sequence is stretched at most so many times, or pressed together; 1 does neither."""


class BlockConfig(Section):
    """Attention, feed-forward, norms and initial weights of Transformer blocks are made from these keys."""

    hidden_size: int = Field(gt=0)
    """Width d of the residual stream."""
    ffn_hidden_size: int | None = Field(default=None, gt=0)
    """Inner width of the feed-forward layer; none: 4 d for GELU, 8/3 d (to a multiple of 64) for SwiGLU."""
    attention: AttentionConfig
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Feed-forward activation."""
    positions: Literal["rotary", "learned", "sinusoidal", "cape"] = "rotary"
    """Position information: rotary embedding of queries and keys, a learned table, the fixed one of Vaswani et al. 2017
    (arXiv 1706.03762, 3.5), which is added to the embedding times sqrt(d), or that one moved by chance (`cape`)."""
    cape: CapeConfig = CapeConfig()
    """How far `cape` moves positions in training."""
    rotary_base: float = Field(default=10_000.0, gt=0)
    """Base of the rotary frequencies."""
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Which normalization."""
    norm_placement: Literal["pre", "post", "deepnorm", "none"] = "pre"
    """`pre`: x + f(norm(x)), and a last norm before the head; `post`: norm(x + f(x)), and no last norm (Vaswani et al.
    2017, arXiv 1706.03762); `none`: x + f(x). Initial weights are the same for these three. `deepnorm`: norm(alpha x +
    f(x)) with initial weights of its own (Wang et al. 2022, arXiv 2203.00555); both follow from the depth."""
    normalization_epsilon: float = Field(default=1e-5, gt=0)
    """Added to the variance before the square root."""
    bias: bool = True
    """Biases in linear and LayerNorm layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the embedding and on each residual branch."""
    layer_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which a block is left out of one micro-batch in training (arXiv 1909.11556). It is computed all
    the same, for the same collectives on every rank."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of initial weights; for residual projections divided by the square root of the number of
    residual branches, sqrt(2 layers) (GPT-2). With `deepnorm` that of embeddings and head alone."""
    reparametrization: Literal["none", "sigma", "sigma_stats_only"] = "none"
    """sigmaReparam (arXiv 2303.06296) on every matrix of the blocks, or its spectral norms without using them."""
    gamma_init: Literal["sigma", "one"] = "sigma"
    """First gamma of sigmaReparam: the spectral norm (the reference code), so that nothing changes, or 1 (the text)."""
    sigma_vectors: int = Field(default=8, gt=0)
    """Vectors of the power iteration: 1 as in the reference code; more follow sigma where singular values cross."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    compile: bool = False
    """Compile blocks for training, with torch.compile: one graph serves all that are alike. It takes a compiler, of C++
    on CPUs, and the first step takes longer; where it fails, blocks run as they are."""

    @property
    def num_key_value_heads(self) -> int:
        """It counts key and value heads: as many as query heads where they are not grouped."""
        return self.attention.num_key_value_heads or self.attention.num_heads

    @property
    def attention_rank(self) -> int:
        """This is the rank r of low-rank attention."""
        return self.attention.rank or self.hidden_size // 2

    @property
    def head_size(self) -> int:
        """It counts the numbers in one head's query, key or value."""
        return self.hidden_size // self.attention.num_heads

    @property
    def ffn_size(self) -> int:
        """This is the inner width of the feed-forward layer."""
        if self.ffn_hidden_size:
            return self.ffn_hidden_size
        if self.activation == "gelu":
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // 3 // 64) * 64


NOT_IN_WEIGHTS = {
    "dropout": True,
    "layer_drop": True,
    "cape": True,
    "activation_checkpointing": True,
    "compile": True,
    "attention": {"dropout", "down_projection"},
}
"""Keys of blocks that a resumed run may change, as pydantic's `exclude` takes them."""


class DepthConfig(Section):
    """A stack has so many blocks."""

    num_layers: int = Field(gt=0, le=100_000)
    """Transformer blocks."""


class TransformerConfig(BlockConfig, DepthConfig):
    """One stack of Transformer blocks is made from these keys."""


class VocabularyConfig(Section):
    """A vocabulary has a table that is cut over tensor-parallel ranks."""

    vocabulary_size: int = Field(gt=0)
    """Size of the tokenizer's vocabulary."""
    vocabulary_multiple: int = Field(default=128, gt=0)
    """The embedding table is padded to a multiple of this; padded rows stay zero and are never predicted."""
    tied_embeddings: bool = True
    """The head uses the embedding table."""

    @property
    def padded_vocabulary_size(self) -> int:
        """It counts the rows of the table, those of the padding included."""
        return -(-self.vocabulary_size // self.vocabulary_multiple) * self.vocabulary_multiple
