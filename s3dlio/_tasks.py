"""Operations that wait for requests without a thread for each: coroutines, which this runs in the caller's thread and
`s3dlio.aio` in an event loop."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Awaited(Protocol):
    """What a coroutine of ours yields when it has to wait."""

    def block(self) -> None:
        """Waits for its end."""

    def on_end(self, callback: Callable[[], None]) -> None:
        """Has this called at its end, from any thread, or at once if it has ended."""


# Yields nothing but `Awaited`; Coroutine's first parameter cannot say more than that.
Task = Coroutine[Awaited, None, Result]


def run(task: Task[Result]) -> Result:
    """Runs one to its end."""
    error: BaseException | None = None
    while True:
        try:
            awaited = task.send(None) if error is None else task.throw(error)
        except StopIteration as end:
            result: Result = end.value
            return result
        error = None
        try:
            awaited.block()
        except BaseException as interrupt:  # Ctrl-C, which the task has to clear up after
            error = interrupt


def run_many(tasks: Iterable[Task[Any]], limit: int) -> None:
    """Runs many, up to ``limit`` at once, each taken when there is room for it.

    When one fails no more are begun, and the first failure is raised once the others have ended.  Ctrl-C breaks all
    off.
    """
    todo = iter(tasks)
    ended: queue.SimpleQueue[Task[Any]] = queue.SimpleQueue()
    under_way: set[Task[Any]] = set()
    failure: BaseException | None = None

    def go_on(task: Task[Any]) -> None:
        nonlocal failure
        try:
            awaited = task.send(None)
        except StopIteration:
            under_way.discard(task)
        except Exception as error:
            under_way.discard(task)
            failure = failure or error
        else:
            awaited.on_end(lambda: ended.put(task))

    try:
        while True:
            while failure is None and len(under_way) < limit:
                try:
                    task = next(todo)
                except StopIteration:
                    break
                except Exception as error:  # of an iterable of the caller's
                    failure = error
                    break
                under_way.add(task)
                go_on(task)
            if not under_way:
                break
            go_on(ended.get())
    finally:
        for task in list(under_way):
            task.close()
    if failure is not None:
        raise failure


def run_each(items: AsyncIterator[Result]) -> Iterator[Result]:
    """What an asynchronous iterator of ours yields, one by one; never None."""
    while (item := run(next_of(items))) is not None:
        yield item


async def next_of(items: AsyncIterator[Result]) -> Result | None:
    """The next one, or None at the end."""
    return await anext(items, None)
