"""These are the [model] sections of models that forecast series, one a kind of model."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from data_pipeline.config import DataConfig
from data_pipeline.series.config import SeriesConfig
from parallel.config import ParallelConfig
from pretrain.errors import Problem
from pretrain.models.config import NOT_IN_WEIGHTS, AttentionConfig, TransformerConfig
from pretrain.models.outline import Outline
from pretrain.models.rules import block_problems, shares_are_whole, zero_fits_reparametrization
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.forecasting.sizes import (
    linear_outline,
    mixer_outline,
    samformer_outline,
    temporal_outline,
)


class ForecasterConfig(TaskConfig):
    """It has what models that forecast have in common."""

    data_section: ClassVar[type[DataConfig]] = SeriesConfig
    loss_unit: ClassVar[str] = "squared error of scaled values"
    targets: ClassVar[str] = "windows"

    def shape(self, data: SeriesConfig) -> dict[str, Any]:
        """Matrices are as large as windows are long, and gains belong to channels."""
        sizes = {"channels": data.channels, "lookback": data.lookback, "horizon": data.horizon}
        return {**super().shape(data), **sizes}


class HeadedConfig(ForecasterConfig):
    """It has what models have in common that end with a linear map of their own over time."""

    head_init: Literal["glorot", "zero"] = "glorot"
    """First weights of the head: by Glorot's rule, as in the released code of SAMformer, or zero. What was drawn stays
    in directions that train windows hardly vary in; zero forecasts better at long horizons (docs/results)."""


class ChannelBlocksConfig(TransformerConfig):
    """It is what the blocks of SAMformer are made from: tokens are channels, and their width is the lookback.

    No file has it; it follows from `SamformerConfig`.
    """

    size_of_heads: int
    """Heads are as large as they are told, and do not share the width."""

    @property
    def head_size(self) -> int:
        """It counts the numbers in one head's query, key or value."""
        return self.size_of_heads


class SamformerConfig(HeadedConfig):
    """SAMformer (Ilbert et al. 2024, arXiv 2402.10198): attention of channels to each other, and one linear map."""

    kind: Literal["samformer"] = "samformer"
    """Architecture."""
    num_layers: int = Field(default=1, gt=0, le=100_000)
    """Blocks of attention; the paper has one."""
    num_heads: int = Field(default=1, gt=0)
    """Heads of attention."""
    head_size: int = Field(default=16, gt=0)
    """Numbers in a head's query, key or value."""
    instance_norm: bool = True
    """Reversible instance normalization (RevIN, Kim et al. 2022): each channel of a window is normalized over its time,
    with a gain and a bias, and what is forecast is taken back. Without it, forecasts are as they come."""
    norm_placement: Literal["none", "pre"] = "none"
    """`none`: x + f(x), as in the paper; `pre`: x + f(norm(x)), and a last norm before the head, for deep stacks. The
    norm is LayerNorm over the time of a channel."""
    init: Literal["keras", "glorot"] = "keras"
    """First weights of the attention: Glorot's variance, 2 / (inputs + outputs), with the inputs and outputs of a
    matrix (`glorot`), or with those that Keras counts for the three-dimensional tensors of its attention, as the
    released code has them: queries, keys and values then begin smaller, and attention nearly uniform."""
    frozen_attention: bool = False
    """Attention keeps its first weights, as the Random Transformer of the paper; needs `optimizer.weight_decay = 0`,
    which would shrink them."""
    bias: bool = True
    """Biases in linear layers, LayerNorm and instance norm. Without them forecasts of a mirrored series are mirrored,
    so that no drift of the train split is learned, which helps at long horizons (docs/results)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on what attention adds."""
    reparametrization: Literal["none", "sigma", "sigma_stats_only"] = "none"
    """sigmaReparam (arXiv 2303.06296) on every matrix of the attention, or its spectral norms without using them."""
    gamma_init: Literal["sigma", "one"] = "sigma"
    """First gamma of sigmaReparam: the spectral norm, so that nothing changes, or 1."""
    sigma_vectors: int = Field(default=8, gt=0)
    """Vectors of the power iteration."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    compile: bool = False
    """Compile blocks for training, as of other models (`kind = "gpt"`)."""

    changeable: ClassVar[dict[str, bool]] = {
        "dropout": True,
        "activation_checkpointing": True,
        "compile": True,
        "frozen_attention": True,
    }

    def blocks(self, data: SeriesConfig) -> ChannelBlocksConfig:
        """It returns what the blocks are made from."""
        common = set(type(self).model_fields) & set(TransformerConfig.model_fields)
        return ChannelBlocksConfig(
            **self.model_dump(include=common),
            hidden_size=data.lookback,
            size_of_heads=self.head_size,
            attention=AttentionConfig(num_heads=self.num_heads),
            positions="learned",  # of which attention knows nothing: a channel is none before or behind another
        )

    def outline(self, data: SeriesConfig) -> Outline:
        """It lists instance norm, blocks, norm and head."""
        return samformer_outline(self.blocks(data), data, instance_norm=self.instance_norm)

    def problems(self, data: SeriesConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """Heads are divided over tensor-parallel ranks."""
        yield from shares_are_whole({"model.num_heads": self.num_heads}, parallel.tensor)
        yield from zero_fits_reparametrization(self.blocks(data), parallel.zero_stage)
        if self.frozen_attention and self.reparametrization == "sigma":
            rule = "keeps the weights of attention, but the gammas of sigmaReparam would move"
            yield Problem("model.frozen_attention", rule, 'for example reparametrization = "none"', "true")


class TemporalConfig(HeadedConfig, TransformerConfig):
    """A Transformer whose tokens are times, each with all channels, to compare SAMformer with: embedding, positions,
    blocks; then back to the channels, and the same linear map over time as SAMformer's."""

    kind: Literal["temporal"] = "temporal"
    """Architecture."""
    positions: Literal["rotary", "learned", "sinusoidal", "cape"] = "sinusoidal"
    """Position information, as of other models."""
    instance_norm: bool = True
    """Reversible instance normalization, as of `samformer`."""

    changeable: ClassVar[dict[str, Any]] = NOT_IN_WEIGHTS

    def outline(self, data: SeriesConfig) -> Outline:
        """It lists instance norm, embedding, positions, blocks, norm and head."""
        return temporal_outline(self, data, instance_norm=self.instance_norm)

    def problems(self, data: SeriesConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """Blocks must divide over tensor-parallel ranks."""
        yield from block_problems(self, parallel)


class MixerConfig(HeadedConfig):
    """TSMixer (Chen et al. 2023, arXiv 2303.06053): a block mixes times with one matrix, then channels with two.

    Norms are over times and channels of each window. The released code has batch norms: with those the loss of a window
    would depend on what shares its micro-batch, and a run on its layout.
    """

    kind: Literal["tsmixer"] = "tsmixer"
    """Architecture."""
    num_layers: int = Field(default=2, gt=0, le=100_000)
    """Blocks."""
    share_layers: bool = True
    """All blocks are the same layers, which one norm serves, as in the code that SAMformer was compared with; false:
    each has its own, with two norms."""
    ffn_hidden_size: int = Field(default=64, gt=0)
    """Inner width of the mixing of channels."""
    dropout: float = Field(default=0.9, ge=0, lt=1)
    """Dropout in and behind what mixes."""
    instance_norm: bool = True
    """Reversible instance normalization, as of `samformer`."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    compile: bool = False
    """Compile blocks for training, as of other models (`kind = "gpt"`)."""

    changeable: ClassVar[dict[str, bool]] = {
        "dropout": True,
        "activation_checkpointing": True,
        "compile": True,
    }

    def blocks(self, data: SeriesConfig) -> TransformerConfig:
        """It returns the settings of a residual stream of channels, whose width is the lookback."""
        common = set(type(self).model_fields) & set(TransformerConfig.model_fields)
        attention = AttentionConfig(num_heads=1)  # of which there is none
        return TransformerConfig(
            **self.model_dump(include=common), hidden_size=data.lookback, attention=attention
        )

    def outline(self, data: SeriesConfig) -> Outline:
        """It lists instance norm, blocks and head."""
        return mixer_outline(
            self.blocks(data), data, instance_norm=self.instance_norm, share_layers=self.share_layers
        )

    def problems(self, data: SeriesConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """Its matrices are not divided."""
        yield from needs_one_tensor_rank(self.kind, parallel)


class LinearConfig(ForecasterConfig):
    """One linear map from the past of a channel to its future, the same for all channels (Zeng et al. 2023, arXiv
    2205.13504)."""

    kind: Literal["linear"] = "linear"
    """Architecture."""

    @property
    def kernel(self) -> int | None:
        """Times that a moving average is taken over, to have a map of its own; none: there is none."""
        return None

    def outline(self, data: SeriesConfig) -> Outline:
        """It is one block."""
        return linear_outline(data, decomposed=self.kernel is not None)

    def problems(self, data: SeriesConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """Its matrices are not divided."""
        yield from needs_one_tensor_rank(self.kind, parallel)


class DLinearConfig(LinearConfig):
    """DLinear (Zeng et al. 2023): a moving average has one linear map, what is left of the series another."""

    kind: Literal["dlinear"] = "dlinear"  # type: ignore[assignment]
    """Architecture."""
    moving_average: int = Field(default=25, gt=0, le=65_535)
    """Times of the moving average, an odd number. Before the first time of a window and behind its last one these two
    are repeated."""

    @property
    def kernel(self) -> int:
        """Times that a moving average is taken over."""
        return self.moving_average

    def problems(self, data: SeriesConfig, parallel: ParallelConfig) -> Iterator[Problem]:
        """The moving average needs a time in its middle."""
        yield from super().problems(data, parallel)
        if not self.moving_average % 2:
            rule, remedy = (
                "must be odd, to lie evenly around a time",
                f"for example {self.moving_average + 1}",
            )
            yield Problem("model.moving_average", rule, remedy, str(self.moving_average))


def needs_one_tensor_rank(kind: str, parallel: ParallelConfig) -> Iterator[Problem]:
    """It yields a problem where there are tensor-parallel ranks, for models whose matrices are not divided."""
    if parallel.tensor > 1:
        rule = f"must be 1 with model.kind = {kind}, whose matrices are small and not divided"
        yield Problem(
            "parallel.tensor", rule, "for example tensor = 1, and more data ranks", str(parallel.tensor)
        )


FORECASTERS: tuple[type[ForecasterConfig], ...] = (
    SamformerConfig,
    TemporalConfig,
    MixerConfig,
    LinearConfig,
    DLinearConfig,
)
