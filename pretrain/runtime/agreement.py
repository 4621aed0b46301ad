"""Errors of one rank become errors of all: a rank that raised alone would leave the others waiting for it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.shown import shown
from parallel.mesh import ParallelMesh
from parallel.rendezvous import by_rank
from pretrain.errors import CheckpointError, ConfigurationError, Problem

Result = TypeVar("Result")


def agreed(mesh: ParallelMesh, action: Callable[[], Result]) -> Result:
    """It returns the action's result on this rank; if it failed on any rank, it raises the first such error on all."""
    result: Result | None = None
    failure: Exception | None = None
    try:
        result = action()
    except (DataError, ConfigurationError) as error:
        failure = error
    except OSError as error:
        name = error.filename and f"{shown(error.filename)}: {error.strerror}"
        failure = ConfigurationError(name or str(error))
    answers = mesh.gather(failure and (type(failure), str(failure)))
    for kind, text in filter(None, answers):
        raise kind(text)
    assert failure is None
    return result  # type: ignore[return-value]


def check_alike(mesh: ParallelMesh, values: Mapping[str, str]) -> None:
    """Raise ConfigurationError on all ranks unless each value is equal on all of them."""
    found = mesh.gather(values)
    problems = [
        Problem(name, f"differs: {by_rank(of)}", "ranks must read the same data")
        for name in values
        if len(set(of := [each[name] for each in found])) > 1
    ]
    if problems:
        raise ConfigurationError("the ranks of this run do not agree", problems)


def guarded(steps: Iterable[Sequence[Batch]]) -> Iterator[tuple[Sequence[Batch], str]]:
    """It yields steps of batches, each with an empty string; where the data fails, no batches and why.

    The engine raises BatchesMissing on all ranks when one comes without; `raise_first` then tells all why.
    """
    iterator = iter(steps)
    while True:
        try:
            yield next(iterator), ""
        except StopIteration:
            return
        except DataError as error:
            yield (), str(error)


def raise_first(mesh: ParallelMesh, problem: str) -> None:
    """Raise the DataError of the first rank that has a problem, on all ranks."""
    for text in filter(None, mesh.gather(problem)):
        raise DataError(text)


def from_first(mesh: ParallelMesh, action: Callable[[], Result]) -> tuple[Result | None, str]:
    """Do the action on rank 0; every rank gets its result, or None and the problem."""
    answer: tuple[Result | None, str] = (None, "")
    if mesh.rank == 0:
        try:
            answer = (action(), "")
        except (OSError, CheckpointError) as error:
            answer = (None, str(error))
    first: tuple[Result | None, str] = mesh.gather(answer)[0]
    return first


def from_all(mesh: ParallelMesh, action: Callable[[], Result]) -> tuple[Result | None, str]:
    """Do the action on every rank; each gets its result, or all get None and the problem of the first that has one."""
    result: Result | None = None
    problem = ""
    try:
        result = action()
    except (OSError, CheckpointError) as error:
        problem = str(error)
    problem = first_problem(mesh, problem)
    return (None if problem else result), problem


def first_problem(mesh: ParallelMesh, problem: str) -> str:
    """It returns the problem of the first rank that has one, on every rank; empty if none has."""
    return next((text for text in mesh.gather(problem) if text), "")
