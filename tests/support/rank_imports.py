"""The server of ranks imports and finds out, before it forks them, whatever costs seconds in every process.

The garbage collector then leaves all of this alone, in the server and in its ranks. DeepSpeed collects several times
while it builds an engine, and the rig collects after every function; with three thousand modules on the heap each
time costs a quarter of a second, which was half of the work of a rank.
"""

import gc

import deepspeed
import hypothesis  # noqa: F401
import pytest  # noqa: F401
from support import runs, training  # noqa: F401

# DeepSpeed tries once per process which of its operators could be compiled here, and calls the compiler for it.
COMPATIBLE_OPERATORS = deepspeed.ops.__compatible_ops__

gc.collect()
gc.freeze()
