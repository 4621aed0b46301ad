"""One sequence attends to another, such as a decoder's to what the encoder made of the source.

B  samples in a micro-batch, T  tokens of the sequence that asks, S  states that it asks, D  hidden size
H  query heads (local), G  key and value heads (local), K  head size
In decoding A  sources, R  states of the longest: each source has B / A sequences, one after another
"local" is this tensor rank's share; everything else is complete on every rank.
"""

from collections.abc import Callable

from torch import Tensor, nn

from parallel.linear import ColumnParallelLinear
from pretrain.models.attention import (
    PROJECTIONS,
    AttentionCore,
    BlockPass,
    RotaryTable,
    SelfAttention,
    output_projection,
    seeded_dropout,
    split_heads,
)
from pretrain.models.blocks import FeedForward, ResidualBlock
from pretrain.models.cache import CachedLayer, KeyValueCache
from pretrain.models.context import LayerContext

Branch = Callable[[Tensor], Tensor]


class CrossAttention(nn.Module):
    """Queries come from one sequence, keys and values from another; heads are cut over the tensor axis.

    Positions of the two have nothing to do with each other: there is no rotary embedding, and every query sees every
    state that is not padding (Vaswani et al. 2017, arXiv 1706.03762, 3.2.3).
    """

    def __init__(self, context: LayerContext, name: str) -> None:
        super().__init__()
        self.name = name
        self.head_size = context.config.head_size
        self.dropout = context.config.attention.dropout
        projection = PROJECTIONS[context.config.attention.kind]
        self.query = projection(context, name, ("query",))
        self.key_value = projection(context, name, ("key", "value"))
        self.core = AttentionCore(causal=False)
        self.output = output_projection(context, name)

    def forward(
        self,
        x_BTD: Tensor,
        states_BSD: Tensor,
        given: BlockPass,
        real_states_BS: Tensor | None = None,
        real_BT: Tensor | None = None,
    ) -> Tensor:
        """It maps (B, T, D) -> (B, T, D).

        `real_states_BS` and `real_BT` tell, as booleans, what of either sequence is not padding; none: all.
        """
        q_BHTK, k_BGSK, v_BGSK = self.project(x_BTD, states_BSD)
        probability = seeded_dropout(self.dropout, given, "cross_attention", x_BTD.device)
        y_BHTK = self.core(q_BHTK, k_BGSK, v_BGSK, probability, real_states_BS, real_BT)
        return self.output(y_BHTK.transpose(1, 2).flatten(2))

    def decode(self, x_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T, D) -> (B, T, D); sequences of a source are no more to it than further queries."""
        k_AGRK, v_AGRK = cache.of_states(self.name, self.project_states)
        (query_BTN,) = self.query(x_BTD)
        sources, tokens = len(k_AGRK), x_BTD.shape[1]
        q_AHTK = split_heads(query_BTN.reshape(sources, -1, query_BTN.shape[-1]), self.head_size)
        y_AHTK = self.core(q_AHTK, k_AGRK, v_AGRK, 0.0, cache.states.real_AR)
        return self.output(y_AHTK.transpose(1, 2).reshape(len(x_BTD), tokens, -1))

    def project(self, x_BTD: Tensor, states_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """It returns queries (B, H, T, K), keys and values (B, G, S, K)."""
        (query,) = self.query(x_BTD)
        return split_heads(query, self.head_size), *self.project_states(states_BSD)

    def project_states(self, states_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """It returns keys and values (B, G, S, K)."""
        key, value = self.key_value(states_BSD)
        return split_heads(key, self.head_size), split_heads(value, self.head_size)

    def queries(self) -> tuple[ColumnParallelLinear, int]:
        """It returns the linear layer that queries come out of, and how many of its local rows make them."""
        return self.query.first()


class DecoderBlock(ResidualBlock, CachedLayer):
    """The block of a decoder is causal self-attention, cross-attention to the states of an encoder, then feed-forward
    (Vaswani et al. 2017, arXiv 1706.03762, 3.1)."""

    def __init__(self, context: LayerContext, index: int, *, stack: str = "decoder") -> None:
        """`stack` tells the blocks of a model's several stacks apart."""
        super().__init__(context, f"{stack}.{index}")
        self.attention_norm = context.norm()
        self.attention = SelfAttention(context, f"{self.name}.attention")
        self.cross_norm = context.norm()
        self.cross_attention = CrossAttention(context, f"{self.name}.cross_attention")
        self.feed_forward_norm = context.norm()
        self.feed_forward = FeedForward(context, f"{self.name}.feed_forward")

    def rotary(self, x_BSD: Tensor) -> RotaryTable | None:
        return self.attention.rotary(x_BSD)

    def run(self, given: BlockPass, x_BSD: Tensor, *others: Tensor | None) -> Tensor:
        """It maps (B, T, D) -> (B, T, D). The others are the states (B, S, D), and what is not padding of them and of
        the stream, as booleans (B, S) and (B, T)."""
        states_BSD, real_states_BS, real_BT = others
        assert states_BSD is not None

        def attend(h_BTD: Tensor) -> Tensor:
            return self.attention(h_BTD, given, real_BT)

        def ask(h_BTD: Tensor) -> Tensor:
            return self.cross_attention(h_BTD, states_BSD, given, real_states_BS, real_BT)

        return self._branches(x_BSD, attend, ask, given)

    def decode(self, x_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T, D) -> (B, T, D) for the T tokens that follow those of the cache, and adds theirs to it."""

        def attend(h_BTD: Tensor) -> Tensor:
            return self.attention.decode(h_BTD, cache)

        def ask(h_BTD: Tensor) -> Tensor:
            return self.cross_attention.decode(h_BTD, cache)

        return self._branches(x_BTD, attend, ask, BlockPass())

    def _branches(self, x_BTD: Tensor, attend: Branch, ask: Branch, given: BlockPass) -> Tensor:
        x_BTD = self.add(x_BTD, self.attention_norm, attend, given, "attention_residual")
        x_BTD = self.add(x_BTD, self.cross_norm, ask, given, "cross_residual")
        return self.add(x_BTD, self.feed_forward_norm, self.feed_forward, given, "feed_forward_residual")
