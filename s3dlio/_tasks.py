"""Operations that wait for requests without a thread for each: coroutines, which this runs to their end and
`s3dlio.aio` in an event loop."""

from __future__ import annotations

import functools
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from s3dlio import _cancel

Result = TypeVar("Result")

# Seconds for which a second Ctrl-C is not heard while the first one is obeyed.
_MAX_PATIENCE = 5.0
# Seconds after which the main thread looks for a Ctrl-C: Python forgets to wake it for one that comes just when it
# begins to wait for a lock or a queue.
LOOK = 0.2


class Awaited(Protocol):
    """What a coroutine of ours yields when it has to wait."""

    def on_end(self, callback: Callable[[], None]) -> None:
        """Has this called at its end, from any thread, or at once if it has ended."""


# Yields nothing but `Awaited`; Coroutine's first parameter cannot say more than that.
Task = Coroutine[Awaited, None, Result]


def run(task: Task[Result]) -> Result:
    """Runs one to its end.  Ctrl-C breaks it off: the task has cleared up when that is raised."""
    return _apart(lambda inbox: _drive(task, inbox))


def run_many(tasks: Iterable[Task[Any]], limit: int) -> None:
    """Runs many, up to ``limit`` at once, each taken when there is room for it, from whatever thread.

    When one fails no more are begun, and the first failure is raised once the others have ended.  Ctrl-C breaks all
    off.
    """
    _apart(lambda inbox: _drive_many(tasks, limit, inbox))


class _Inbox:
    """Where tasks that can go on come in."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, task: Any) -> None:
        self._queue.put(task)

    def wake(self) -> None:
        self._queue.put(None)

    def get(self) -> Any:
        """Waits for the next.  Raises what breaks this thread off, before all that has come in."""
        while True:
            task = self._queue.get()
            _cancel.check()
            if task is not None:
                return task


def _drive(task: Task[Result], inbox: _Inbox) -> Result:
    error: BaseException | None = None
    while True:
        try:
            awaited = task.send(None) if error is None else task.throw(error)
        except StopIteration as end:
            result: Result = end.value
            return result
        error = None
        awaited.on_end(functools.partial(inbox.put, awaited))
        try:
            while inbox.get() is not awaited:
                pass
        except BaseException as interrupt:
            error = interrupt


def _drive_many(tasks: Iterable[Task[Any]], limit: int, inbox: _Inbox) -> None:
    todo = iter(tasks)
    under_way: dict[Task[Any], None] = {}
    failure: BaseException | None = None

    def go_on(task: Task[Any], interrupt: BaseException | None = None) -> None:
        nonlocal failure
        if task not in under_way:  # it was broken off when it could just go on
            return
        try:
            awaited = task.send(None) if interrupt is None else task.throw(interrupt)
        except StopIteration:
            del under_way[task]
        except Exception as error:
            del under_way[task]
            failure = failure or error
        except BaseException:
            del under_way[task]
            raise
        else:
            awaited.on_end(functools.partial(inbox.put, task))

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
                under_way[task] = None
                go_on(task)
            if not under_way:
                break
            go_on(inbox.get())
    except BaseException:
        # Each is told before one is waited for.  Who waits for his turn first, or he would have it meanwhile.
        for task in reversed(list(under_way)):
            with suppress(_cancel.Cancelled):
                go_on(task, _cancel.Cancelled())
        while under_way:
            with suppress(_cancel.Cancelled):
                go_on(inbox.get())
        raise
    if failure is not None:
        raise failure


class _Job:
    """What another thread does for the main thread."""

    def __init__(self, work: Callable[[_Inbox], Any]) -> None:
        self.work = work
        self.cancellation = _cancel.Cancellation()
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        # Held until it is over.  An Event would be left in pieces by a Ctrl-C within it.
        self.goes_on = threading.Lock()
        self.goes_on.acquire()

    def do(self) -> None:
        if self.is_over:
            return
        try:
            with self.cancellation.of_this_thread():
                _cancel.check()
                self.result = _here(self.work)
        except BaseException as error:
            self.error = error
        self.is_over = True
        self.goes_on.release()


_jobs: queue.SimpleQueue[_Job] | None = None


def _apart(work: Callable[[_Inbox], Result]) -> Result:
    """Calls ``work`` where Ctrl-C cannot come between two of its lines: that is raised in the main thread alone, and
    would leave locks held, counts wrong, and awscrt in the middle of a call."""
    jobs = _queue() if threading.current_thread() is threading.main_thread() else None
    if jobs is None:
        return _here(work)
    job = _Job(work)
    try:
        jobs.put(job)
        while not job.goes_on.acquire(timeout=LOOK):
            pass
    except BaseException:
        job.cancellation.cancel()
        jobs.put(job)  # again: it may have come before the first time
        _wait_for_end(job)
        raise
    if job.error is not None:
        error, job.error = job.error, None
        raise error
    result: Result = job.result
    return result


def _wait_for_end(job: _Job) -> None:
    """However often Ctrl-C is pressed: the thread uses the caller's memory until then."""
    deadline = time.monotonic() + _MAX_PATIENCE
    while not job.is_over:
        try:
            job.goes_on.acquire(timeout=0.1)
        except BaseException:
            if time.monotonic() > deadline:
                raise


def _here(work: Callable[[_Inbox], Result]) -> Result:
    inbox = _Inbox()
    cancellation = _cancel.current()
    if cancellation is None:
        return work(inbox)
    with cancellation.waking(inbox.wake):
        return work(inbox)


def _queue() -> queue.SimpleQueue[_Job] | None:
    global _jobs
    if _jobs is None:
        jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        try:
            threading.Thread(target=_work, args=(jobs,), name="s3dlio-requests", daemon=True).start()
        except RuntimeError:  # the interpreter ends
            return None
        _jobs = jobs
    return _jobs


def _work(jobs: queue.SimpleQueue[_Job]) -> None:
    while True:
        jobs.get().do()


def _in_child() -> None:
    """A thread does not come along into the child of a fork."""
    global _jobs
    _jobs = None


os.register_at_fork(after_in_child=_in_child)


def run_each(items: AsyncIterator[Result]) -> Iterator[Result]:
    """What an asynchronous iterator of ours yields, one by one; never None."""
    while (item := run(next_of(items))) is not None:
        yield item


async def next_of(items: AsyncIterator[Result]) -> Result | None:
    """The next one, or None at the end."""
    return await anext(items, None)
