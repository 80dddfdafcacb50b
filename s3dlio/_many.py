"""Operations on many objects, several at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import nullcontext, suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from s3dlio import _cancel
from s3dlio._errors import InvalidInputError
from s3dlio._ops import get, put, put_arguments
from s3dlio._options import WriterOptions, whole_number, writer_options
from s3dlio._stores.registry import store_for
from s3dlio._tasks import LOOK, Task, run_many
from s3dlio._uri import parse_uri

if TYPE_CHECKING:
    from typing_extensions import Buffer

Item = TypeVar("Item")

# More than this wait for the same disk, or for each other.
_MAX_THREADS = 16


def put_many(
    items: Iterable[tuple[str, Buffer]], max_in_flight: int = 64, options: WriterOptions | None = None, **settings: Any
) -> None:
    """Stores many objects, given as pairs of URI and data, up to ``max_in_flight`` at once, in no particular order.

    Each is stored as by `put`, with these options or settings; files that wait for the disk share its flushes.  Items
    are taken one by one as there is room, so a generator never has to hold more than are on their way.  Those that need
    a thread to wait for them, as files do, are at most 16 at once.

    When one fails, no more are begun, and the first failure is raised once those on their way have ended; what is
    stored stays.  So it is with Ctrl-C and with an exception of the iterable.
    """
    limit = checked_limit(max_in_flight)
    chosen = writer_options(options, settings).snapshot()

    def put_one(item: tuple[str, Buffer]) -> None:
        put(*pair(item), chosen)

    async def put_task(item: tuple[str, Buffer]) -> None:
        uri, content, own = put_arguments(*pair(item), chosen)
        store = store_for(uri)
        tasks = store.tasks_for_put(content, own)
        if tasks is None:
            store.put(uri, content, own)
        else:
            await tasks.put(uri, content, own)

    rest = iter(items)
    first = list(islice(rest, 1))
    if not first:
        return
    everything = chain(first, rest)
    if store_for(parse_uri(pair(first[0])[0])).tasks() is None:
        for_each(everything, put_one, threads_for(limit))
    else:
        run_many((put_task(item) for item in everything), limit)


def pair(item: tuple[str, Buffer]) -> tuple[str, Buffer]:
    try:
        if isinstance(item, str):
            raise TypeError
        uri, data = item
    except (TypeError, ValueError):
        what = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
        hint = "; several pairs are needed, of a dict its items()" if isinstance(item, str) else ""
        raise TypeError(f"an item must be a pair of URI and data, not {what}{hint}") from None
    return uri, data


def several(uris: Iterable[str]) -> list[str]:
    if isinstance(uris, str):
        raise TypeError("several URIs are needed, not one str")
    return list(uris)


def get_many(uris: Iterable[str], max_in_flight: int = 64) -> list[tuple[str, bytes]]:
    """Returns the objects as pairs of URI and data, in the order of ``uris``, up to ``max_in_flight`` read at once.

    All of them are in memory at the end.  The first failure is raised, once the reads on their way have ended.
    """
    limit = checked_limit(max_in_flight)
    wanted = several(uris)
    parsed = [parse_uri(uri) for uri in wanted]
    tasks = {scheme: store_for(uri).tasks() for scheme, uri in {uri.scheme: uri for uri in parsed}.items()}
    found: dict[int, bytes] = {}

    def get_tasks() -> Iterator[Task[None]]:
        for number, uri in enumerate(parsed):
            of_store = tasks[uri.scheme]
            if of_store is not None:
                yield take(number, of_store.get(uri))

    async def take(number: int, task: Task[bytes]) -> None:
        found[number] = await task

    def get_one(number: int) -> None:
        found[number] = get(wanted[number])

    run_many(get_tasks(), limit)
    for_each([number for number in range(len(wanted)) if number not in found], get_one, threads_for(limit))
    return [(uri, found[number]) for number, uri in enumerate(wanted)]


def checked_limit(max_in_flight: int) -> int:
    number = whole_number("max_in_flight", max_in_flight)
    if number < 1:
        raise InvalidInputError(f"max_in_flight must be at least 1, not {max_in_flight}")
    return number


def threads_for(max_in_flight: int) -> int:
    """How many threads do so much at once."""
    return min(checked_limit(max_in_flight), _MAX_THREADS)


def for_each(items: Iterable[Item], work: Callable[[Item], object], nthreads: int) -> None:
    """Calls ``work`` with each item in so many threads, of which the caller's is one.

    When one fails no more are begun, and the first failure is raised once the others have ended.  Ctrl-C, and what else
    breaks off the caller, breaks off all.
    """
    if isinstance(items, Sized):
        nthreads = min(nthreads, len(items))
    todo = iter(items)
    turn = threading.Lock()
    failures: list[BaseException] = []
    ended: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def run() -> None:
        try:
            while not failures:
                _cancel.check()
                with turn:
                    # Again: it was a while ago that this thread came here.
                    item = failures if failures else next(todo, failures)
                if item is failures or failures:
                    return
                work(item)  # type: ignore[arg-type]
        except Exception as error:
            failures.append(error)
        except BaseException as error:
            failures.append(error)
            raise

    workers = [_Worker(run, ended) for _ in range(nthreads - 1)]
    try:
        for worker in workers:
            worker.start()
        run()
        _wait_for(workers, ended)
    except BaseException as error:  # Ctrl-C, or what else breaks off this thread
        failures.append(error)
        for worker in workers:
            worker.cancellation.cancel()
    finally:
        for worker in workers:
            if worker.ident is not None:
                worker.join()
    if failures:
        raise failures[0]


class _Worker(threading.Thread):
    def __init__(self, work: Callable[[], None], ended: queue.SimpleQueue[bool]) -> None:
        super().__init__(name="s3dlio-many", daemon=True)
        self.cancellation = _cancel.Cancellation()
        self._work = work
        self._ended = ended

    def run(self) -> None:
        with self.cancellation.of_this_thread(), suppress(BaseException):  # it is noted
            self._work()
        self._ended.put(True)


def _wait_for(workers: Sequence[_Worker], ended: queue.SimpleQueue[bool]) -> None:
    """Until all have ended, or this thread is to be broken off."""
    cancellation = _cancel.current()
    count = 0
    with cancellation.waking(lambda: ended.put(False)) if cancellation is not None else nullcontext():
        while count < len(workers):
            with suppress(queue.Empty):
                count += ended.get(timeout=LOOK)
            _cancel.check()
