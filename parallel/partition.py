"""Where the list of layers is cut into pipeline stages: pure arithmetic."""

LAYERS_BEFORE_BLOCKS = 2
"""Token embedding; positions and embedding dropout."""
LAYERS_AFTER_BLOCKS = 2
"""Final normalization; head."""


def partition_layers(num_blocks: int, stages: int) -> tuple[int, ...]:
    """Boundaries of the stages in the list [embedding, positions, block * num_blocks, final norm, head].

    Returns `stages + 1` increasing indices; stage i owns the layers `[boundaries[i], boundaries[i + 1])`.
    Blocks are spread evenly and the first stages take what does not divide, for the last one also computes
    head and loss. What precedes the blocks stays with the first stage, what follows them with the last.
    Raises ValueError when there are fewer blocks than stages.
    """
    if not 1 <= stages <= num_blocks:
        raise ValueError(f"{num_blocks} blocks cannot be cut into {stages} stages with a block in each")
    share, remainder = divmod(num_blocks, stages)
    inner = [LAYERS_BEFORE_BLOCKS + i * share + min(i, remainder) for i in range(1, stages)]
    return (0, *inner, LAYERS_BEFORE_BLOCKS + num_blocks + LAYERS_AFTER_BLOCKS)
