"""Operations on many objects, several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from s3dlio._errors import InvalidInputError
from s3dlio._ops import get, put
from s3dlio._options import WriterOptions, whole_number, writer_options

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
    are taken one by one as there is room, so a generator never has to hold more than are on their way.

    When one fails, no more are begun, and the first failure is raised once those on their way have ended; what is
    stored stays.  So it is with Ctrl-C and with an exception of the iterable.
    """
    chosen = writer_options(options, settings).snapshot()

    def put_one(item: tuple[str, Buffer]) -> None:
        try:
            uri, data = item
        except (TypeError, ValueError):
            raise TypeError(f"an item must be a pair of URI and data, not {type(item).__name__}") from None
        put(uri, data, chosen)

    for_each(items, put_one, threads_for(max_in_flight))


def get_many(uris: Iterable[str], max_in_flight: int = 64) -> list[tuple[str, bytes]]:
    """Returns the objects as pairs of URI and data, in the order of ``uris``, up to ``max_in_flight`` read at once.

    All of them are in memory at the end.  The first failure is raised, once the reads on their way have ended.
    """
    wanted = list(uris)
    found: dict[int, bytes] = {}

    def get_one(item: tuple[int, str]) -> None:
        found[item[0]] = get(item[1])

    for_each(enumerate(wanted), get_one, threads_for(max_in_flight))
    return [(uri, found[number]) for number, uri in enumerate(wanted)]


def threads_for(max_in_flight: int) -> int:
    """How many threads do so much at once."""
    number = whole_number("max_in_flight", max_in_flight)
    if number < 1:
        raise InvalidInputError(f"max_in_flight must be at least 1, not {max_in_flight}")
    return min(number, _MAX_THREADS)


def for_each(items: Iterable[Item], work: Callable[[Item], object], nthreads: int) -> None:
    """Calls ``work`` with each item in so many threads, of which the caller's is one."""
    todo = iter(items)
    turn = threading.Lock()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not failures:
                with turn:
                    # Again: it was a while ago that this thread came here.
                    item = failures if failures else next(todo, failures)
                if item is failures or failures:
                    return
                work(item)  # type: ignore[arg-type]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, name="s3dlio-many", daemon=True) for _ in range(nthreads - 1)]
    try:
        for thread in threads:
            thread.start()
        run()
    except BaseException as error:  # Ctrl-C between the lines
        failures.append(error)
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if failures:
        raise failures[0]
