"""What a machine had too little of, seen from an error: the system and torch say it in many ways."""

import errno

from data_pipeline.shown import shown

NO_MEMORY = (
    "can't allocate memory",  # torch, of the CPU's
    "out of memory",  # CUDA and NCCL, where it is no `torch.OutOfMemoryError`
    "ALLOC_FAILED",  # cuBLAS and its like
    "bad_alloc",
)
NO_THREADS = ("can't start new thread", "Resource temporarily unavailable")
"""From Python, and from C++; the latter with nothing before it, as sockets have."""
NO_FILES = "Too many open files"
"""From the system, and from gloo, which says it of pipes and sockets."""


def shortage(error: Exception) -> str:
    """It says that memory did not suffice, or no thread, process or file could be had; empty: none of these."""
    text = shown(str(error).partition("\n")[0])
    if lacks_memory(error):
        return f"the memory does not suffice{text and f': {text}'}"
    if text.startswith(NO_THREADS) or (isinstance(error, OSError) and error.errno == errno.EAGAIN):
        return f"no more threads or processes can be started here (`ulimit -u`, or the limit of a container): {text}"
    if NO_FILES in text:
        return f"no more files can be opened here (`ulimit -n`): {text}"
    return ""


def lacks_memory(error: Exception) -> bool:
    """It tells whether memory was asked for in vain, of this machine or of a device."""
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
