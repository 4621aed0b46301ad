"""Pure arithmetic says where the list of layers is cut into pipeline stages."""

from collections.abc import Sequence


def partition_layers(is_block: Sequence[bool], stages: int) -> tuple[int, ...]:
    """It returns the boundaries of the stages in a list of layers, of which `is_block` tells the blocks.

    They are `stages + 1` increasing indices; stage i owns the layers `[boundaries[i], boundaries[i + 1])`. Blocks are
    spread evenly and the first stages take what does not divide, for the last one also computes head and loss. What
    precedes the blocks stays with the first stage, what follows a block with the stage of that block.
    It raises ValueError when there are fewer blocks than stages.
    """
    blocks = [index for index, block in enumerate(is_block) if block]
    if not 1 <= stages <= len(blocks):
        raise ValueError(f"{len(blocks)} blocks cannot be cut into {stages} stages with a block in each")
    share, remainder = divmod(len(blocks), stages)
    inner = [blocks[stage * share + min(stage, remainder)] for stage in range(1, stages)]
    return (0, *inner, len(is_block))
