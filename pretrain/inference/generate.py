"""A model continues text, token by token, with a key-value cache."""

from collections.abc import Iterator, Sequence

import torch

from pretrain.inference.model import LoadedModel
from pretrain.inference.sampling import Sampler, Sampling
from pretrain.models.cache import KeyValueCache, decode
from pretrain.tasks.text import TextCodec


def continuation(
    model: LoadedModel, codec: TextCodec, prompt: str, sampling: Sampling, limit: int
) -> Iterator[str]:
    """It yields the text that follows a prompt, in whole characters as soon as they are there: until the model ends the
    text, at most `limit` tokens.

    The prompt is taken for the beginning of a text; an empty one leaves all to the model.

    Raises:
        DataError: the prompt is no text.
        CheckpointError: the model has diverged.
    """
    tokens = [codec.end_of_text, *codec.encode(prompt)]
    stream, sampler = codec.stream(), Sampler(sampling)
    for token in next_tokens(model, codec.window, tokens, sampler, limit):
        if token == codec.end_of_text:
            break
        if text := stream.add(token):
            yield text
    if text := stream.end():
        yield text


def next_tokens(
    model: LoadedModel, window: int, prompt: Sequence[int], sampler: Sampler, limit: int
) -> Iterator[int]:
    """It yields up to `limit` tokens that follow a prompt, which has one at least.

    The model sees no more tokens than at once in training, `window`: positions beyond have no row in a table, or were
    never trained. Once they are full, it goes on with the latter half of them, which it computes anew.
    """
    seen = list(prompt)
    new = seen[-window:]
    # A model that was trained for long texts has more room in its window than memory, where little is written.
    cache = KeyValueCache(min(window, len(new) + limit))
    for _ in range(limit):
        if cache.length + len(new) > window:
            cache.clear()
            new = seen[-max(window // 2, 1) :]
        logits = decode(model.layers.layers, torch.tensor([new], device=model.mesh.device), cache)
        token = sampler.choose(logits[0, -1])
        yield token
        seen.append(token)
        new = [token]
