"""Decoding keeps keys and values of the tokens so far, so that a further token costs one column and not all of them.

B  sequences, T  tokens of a call, S  tokens so far with those of the call, D  hidden size
G  key and value heads (local), K  head size
A  sources that an encoder has read, R  states of the longest: each source has B / A sequences, one after another
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EncoderStates:
    """They are what an encoder has made of sources."""

    states_ARD: Tensor
    real_AR: Tensor
    """Booleans: what is not padding."""

    def of(self, sources: Tensor) -> "EncoderStates":
        """It returns those of some of the sources."""
        return EncoderStates(self.states_ARD[sources], self.real_AR[sources])


class KeyValueCache:
    """It holds keys and values of every attention of a model for the tokens so far, in memory for `capacity` of them.

    Sequences of a batch have the same number of tokens. In the decoder behind an encoder it holds keys and values of
    the encoder's states, too, which all sequences of a source share.
    """

    def __init__(self, capacity: int, states: EncoderStates | None = None) -> None:
        self.capacity = capacity
        self.length = 0
        """Tokens so far: the position of the next one."""
        self._states = states
        self._stored: dict[str, KeysAndValues] = {}
        self._of_states: dict[str, KeysAndValues] = {}

    @property
    def states(self) -> EncoderStates:
        """These are the states that cross-attention asks."""
        assert self._states, "there is no encoder"
        return self._states

    def of_states(self, name: str, project: Callable[[Tensor], KeysAndValues]) -> KeysAndValues:
        """It returns keys and values of the states, (A, G, R, K), for the attention called `name`, which makes them in
        `project` once."""
        if name not in self._of_states:
            self._of_states[name] = project(self.states.states_ARD)
        return self._of_states[name]

    def extended(self, name: str, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """It adds keys and values of the next T tokens for the attention called `name`; returns all so far, (B, G, S,
        K). The tokens count once they have passed all layers (`advance`)."""
        start, stop = self.length, self.length + k_BGTK.shape[2]
        assert stop <= self.capacity, f"{stop} tokens in a cache of {self.capacity}"
        if name not in self._stored:
            self._stored[name] = _room(k_BGTK, self.capacity)
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

    def select(self, sequences: Tensor) -> None:
        """It goes on with these sequences, int64, each of which may be wanted several times or not at all."""
        for name, both in self._stored.items():
            chosen = [part[sequences, :, : self.length] for part in both]
            if len(sequences) > len(both[0]):
                both = _room(chosen[0], self.capacity)
            self._stored[name] = (both[0][: len(sequences)], both[1][: len(sequences)])
            for room, part in zip(self._stored[name], chosen, strict=True):
                room[:, :, : self.length] = part

    def select_sources(self, sources: Tensor) -> None:
        """It goes on with these sources alone, int64."""
        self._states = self.states.of(sources)
        self._of_states = {
            name: (keys[sources], values[sources]) for name, (keys, values) in self._of_states.items()
        }


def _room(like_BGTK: Tensor, capacity: int) -> KeysAndValues:
    batch, heads, _, size = like_BGTK.shape
    room = like_BGTK.new_empty(2, batch, heads, capacity, size)
    return room[0], room[1]


class CachedLayer(ABC):
    """A layer that is decoded in its own way: its output depends on where a token stands, on the tokens before it, or
    on an encoder's states; or it takes more than tokens in training."""

    @abstractmethod
    def decode(self, x_BTD: Tensor, cache: KeyValueCache) -> Tensor:
        """It maps (B, T, D) -> (B, T, D) for the T tokens that follow those of the cache, and adds what it keeps."""


@torch.no_grad()
def decode(layers: nn.ModuleList, tokens_BT: Tensor, cache: KeyValueCache, outputs: int = 1) -> Tensor:
    """It takes T tokens that follow those of the cache through layers of a causal model, and adds them to the cache.

    It returns what the model makes of the last `outputs` of them, (B, outputs, ...): layers behind the last block see
    no others, such as a head, whose logits take more memory than all else. All other layers look at one token alone.
    """
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, CachedLayer))
    x = tokens_BT
    for layer in layers[: last + 1]:
        x = layer.decode(x, cache) if isinstance(layer, CachedLayer) else layer(x)
    cache.advance(tokens_BT.shape[1])
    x = x[:, -outputs:]
    for layer in layers[last + 1 :]:
        x = layer(x)
    return x
