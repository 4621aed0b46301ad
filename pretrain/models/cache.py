"""Decoding keeps keys and values of the tokens so far, so that a further token costs one column and not all of them.

B  sequences, T  tokens of a call, S  tokens so far with those of the call, D  hidden size
G  key and value heads (local), K  head size
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from parallel.pipeline import SequentialLayers


class KeyValueCache:
    """It holds keys and values of every attention of a model for the tokens so far, in memory for `capacity` of them.

    Sequences of a batch have the same number of tokens.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        """Tokens so far: the position of the next one."""
        self._stored: dict[str, tuple[Tensor, Tensor]] = {}

    def extended(self, name: str, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """It adds keys and values of the next T tokens for the attention called `name`; returns all so far, (B, G, S,
        K). The tokens count once they have passed all layers (`advance`)."""
        start, stop = self.length, self.length + k_BGTK.shape[2]
        assert stop <= self.capacity, f"{stop} tokens in a cache of {self.capacity}"
        if name not in self._stored:
            batch, heads, _, size = k_BGTK.shape
            room = k_BGTK.new_empty(2, batch, heads, self.capacity, size)
            self._stored[name] = (room[0], room[1])
        keys, values = self._stored[name]
        keys[:, :, start:stop] = k_BGTK
        values[:, :, start:stop] = v_BGTK
        return keys[:, :, :stop], values[:, :, :stop]

    def advance(self, tokens: int) -> None:
        """So many tokens have passed all layers."""
        self.length += tokens

    def clear(self) -> None:
        """It forgets all tokens; the memory stays."""
        self.length = 0


class CachedLayer(ABC):
    """A layer whose output depends on where a token stands, or on the tokens before it."""

    @abstractmethod
    def decode(self, x_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T, D) -> (B, T, D) for the T tokens that follow those of the cache, and adds what it keeps."""


@torch.no_grad()
def decode(model: SequentialLayers, tokens_BT: Tensor, cache: KeyValueCache, outputs: int = 1) -> Tensor:
    """It takes T tokens that follow those of the cache through a causal model, and adds them to the cache.

    It returns what the model makes of the last `outputs` of them, (B, outputs, ...): layers behind the last block see
    no others, such as a head, whose logits take more memory than all else. All other layers look at one token alone.
    """
    last = max(i for i, layer in enumerate(model.layers) if isinstance(layer, CachedLayer))
    x = tokens_BT
    for layer in model.layers[: last + 1]:
        x = layer.decode(x, cache) if isinstance(layer, CachedLayer) else layer(x)
    cache.advance(tokens_BT.shape[1])
    x = x[:, -outputs:]
    for layer in model.layers[last + 1 :]:
        x = layer(x)
    return x
