"""Raw data is worked on in several processes; what comes of it keeps its order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

from data_pipeline.errors import DataError

AHEAD = 2
"""Portions that wait or are worked on, per worker."""

Label = TypeVar("Label")
Portion = TypeVar("Portion")
Result = TypeVar("Result")


def worked_in_order(
    work: Callable[[Portion], Result], portions: Iterable[tuple[Label, Portion]], workers: int
) -> Iterator[tuple[Label, Result]]:
    """It works in `workers` processes (1: in this one); results come in the order of `portions`, with the labels, which
    stay in this process.

    Raises DataError when a worker dies.
    """
    if workers == 1:
        yield from ((label, work(portion)) for label, portion in portions)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    pending: deque[tuple[Label, Future[Result]]] = deque()
    try:
        for label, portion in portions:
            with _interrupts_held():
                pending.append((label, pool.submit(work, portion)))
            if len(pending) > AHEAD * workers:
                yield _result(pending)
        while pending:
            yield _result(pending)
    except BrokenProcessPool as error:
        raise DataError("a worker process died, perhaps for want of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _result(pending: deque[tuple[Label, Future[Result]]]) -> tuple[Label, Result]:
    label, future = pending.popleft()
    return label, future.result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """It holds Ctrl-C back while workers are started: they inherit it held, and none dies of it before it is ready.

    The pool of Python 3.11.2 can wait for such a worker for ever when it is shut down.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start_worker() -> None:
    """It leaves Ctrl-C to the parent, and has the worker end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
