"""The operations of `s3dlio` for asyncio: the same names, arguments, results and errors.

>>> import asyncio
>>> from s3dlio import aio
>>> async def both():
...     await aio.put("memory://demo/hello", b"hello world")
...     return await aio.get("memory://demo/hello")
>>> asyncio.run(both())
b'hello world'

What is asked of S3 needs no thread while it waits: a thousand may be on their way.  Other stores, and whole jobs
(`upload`, `download`, a `copy` through this process, a `put` that is compressed or larger than 16 MiB), run in the
thread pool of the event loop.  What is cancelled is broken off as by Ctrl-C, at once or within a moment, and has
cleared up when the cancellation is raised.

There is no `open_writer` here: a writer copies, and seldom waits.  Call it in a thread where it may.
"""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from s3dlio import _cancel, _many, _ops, _transfer
from s3dlio._errors import NotAnObjectError, NotFoundError
from s3dlio._options import WriterOptions, writer_options
from s3dlio._stores.base import ObjectStat, StaleUpload, Tasks
from s3dlio._stores.registry import store_for
from s3dlio._tasks import Task, next_of
from s3dlio._transfer import Progress
from s3dlio._uri import Uri, parse_uri

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "abort_stale_uploads",
    "copy",
    "create_bucket",
    "delete",
    "delete_bucket",
    "download",
    "exists",
    "get",
    "get_many",
    "get_range",
    "iter_objects",
    "list",
    "list_stale_uploads",
    "put",
    "put_many",
    "stat",
    "upload",
]

# More than this wait for each other in any case.
_MAX_IN_FLIGHT = 1024

# `list` is a function in here.
List: TypeAlias = builtins.list
Item = TypeVar("Item")
Result = TypeVar("Result")


async def get(uri: str) -> bytes:
    """As `s3dlio.get`."""
    return await _ask(lambda tasks, parsed: tasks.get(parsed), _ops.get, uri)


async def get_range(uri: str, offset: int, length: int | None = None) -> bytes:
    """As `s3dlio.get_range`."""
    offset, length = _ops.checked_range(uri, offset, length)
    return await _ask(
        lambda tasks, parsed: tasks.get_range(parsed, offset, length), _ops.get_range, uri, offset, length
    )


async def get_many(uris: Iterable[str], max_in_flight: int = 64) -> List[tuple[str, bytes]]:
    """As `s3dlio.get_many`."""
    wanted = _many.several(uris)
    for uri in wanted:
        parse_uri(uri)
    found: dict[int, bytes] = {}

    async def take(item: tuple[int, str]) -> None:
        found[item[0]] = await get(item[1])

    await _for_each(enumerate(wanted), take, _many.checked_limit(max_in_flight))
    return [(uri, found[number]) for number, uri in enumerate(wanted)]


async def put(uri: str, data: Buffer, options: WriterOptions | None = None, **settings: Any) -> None:
    """As `s3dlio.put`.  The data must stay as they are until it returns."""
    chosen = writer_options(options, settings).snapshot()
    parsed, content, chosen = _ops.put_arguments(uri, data, chosen)
    store = store_for(parsed)
    tasks = store.tasks_for_put(content, chosen)
    if tasks is None:
        await _in_thread(store.put, parsed, content, chosen)
    else:
        await _wait_for(tasks.put(parsed, content, chosen))


async def put_many(
    items: Iterable[tuple[str, Buffer]] | AsyncIterable[tuple[str, Buffer]],
    max_in_flight: int = 64,
    options: WriterOptions | None = None,
    **settings: Any,
) -> None:
    """As `s3dlio.put_many`; an asynchronous iterator may give the items too."""
    chosen = writer_options(options, settings).snapshot()

    async def put_one(item: tuple[str, Buffer]) -> None:
        await put(*_many.pair(item), chosen)

    await _for_each(items, put_one, _many.checked_limit(max_in_flight))


async def stat(uri: str) -> ObjectStat:
    """As `s3dlio.stat`."""
    return await _ask(lambda tasks, parsed: tasks.stat(parsed), _ops.stat, uri)


async def exists(uri: str) -> bool:
    """As `s3dlio.exists`."""
    try:
        await stat(uri)
    except (NotFoundError, NotAnObjectError):
        return False
    return True


async def iter_objects(uri: str, recursive: bool = True, pattern: str | None = None) -> AsyncIterator[str]:
    """As `s3dlio.iter_objects`, for ``async for``."""
    is_wanted = _ops.filter_for(uri, pattern)
    parsed = parse_uri(uri)
    tasks = store_for(parsed).tasks()
    if tasks is None:
        for name in await _in_thread(_ops.list_objects, uri, recursive, pattern):
            yield name
        return
    async for each in _each_of(tasks.list(parsed, recursive)):
        if is_wanted(each):
            yield str(each)


async def list(  # noqa: A001
    uri: str, recursive: bool = True, pattern: str | None = None
) -> List[str]:
    """As `s3dlio.list`."""
    return [each async for each in iter_objects(uri, recursive, pattern)]


async def delete(uri: str, recursive: bool = False) -> None:
    """As `s3dlio.delete`."""
    await _ask(lambda tasks, parsed: tasks.delete(parsed, recursive), _ops.delete, uri, recursive)


async def create_bucket(uri: str) -> None:
    """As `s3dlio.create_bucket`."""
    await _ask(lambda tasks, parsed: tasks.create_bucket(parsed), _ops.create_bucket, uri)


async def delete_bucket(uri: str) -> None:
    """As `s3dlio.delete_bucket`."""
    await _ask(lambda tasks, parsed: tasks.delete_bucket(parsed), _ops.delete_bucket, uri)


async def list_stale_uploads(uri: str) -> List[StaleUpload]:
    """As `s3dlio.list_stale_uploads`."""
    parsed = parse_uri(uri)
    tasks = store_for(parsed).tasks()
    if tasks is None:
        return await _in_thread(_ops.list_stale_uploads, uri)
    return [each async for each in _each_of(tasks.stale_uploads(parsed))]


async def abort_stale_uploads(uri: str, older_than: timedelta | float) -> List[StaleUpload]:
    """As `s3dlio.abort_stale_uploads`."""
    before = _ops.begun_before(uri, older_than)
    doomed = [upload for upload in await list_stale_uploads(uri) if upload.begun <= before]
    for upload in doomed:
        parsed = parse_uri(upload.uri)
        tasks = store_for(parsed).tasks()
        if tasks is not None:
            await _wait_for(tasks.abort_upload(parsed, upload.upload_id))
    return doomed


async def upload(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    dest_uri: str,
    max_in_flight: int = 16,
    progress: Progress | None = None,
    options: WriterOptions | None = None,
    **settings: Any,
) -> List[str]:
    """As `s3dlio.upload`.  ``progress`` is called from other threads."""
    chosen = writer_options(options, settings).snapshot()
    return await _in_thread(_transfer.upload, paths, dest_uri, max_in_flight, progress, chosen)


async def download(
    uri: str, dest_dir: str | os.PathLike[str], max_in_flight: int = 16, progress: Progress | None = None
) -> List[str]:
    """As `s3dlio.download`.  ``progress`` is called from other threads."""
    return await _in_thread(_transfer.download, uri, dest_dir, max_in_flight, progress)


async def copy(src_uri: str, dest_uri: str, options: WriterOptions | None = None, **settings: Any) -> str:
    """As `s3dlio.copy`."""
    chosen = writer_options(options, settings).snapshot()
    source, target = parse_uri(src_uri), parse_uri(dest_uri)
    tasks = store_for(source).tasks() if _transfer.is_within_store(source, target, chosen) else None
    if tasks is not None and await _wait_for(tasks.copy(source, target)):
        return str(target)
    return await _in_thread(_transfer.copy, src_uri, dest_uri, chosen)


async def _ask(
    asked: Callable[[Tasks, Uri], Task[Result]], otherwise: Callable[..., Result], uri: str, *arguments: Any
) -> Result:
    """What the tasks of the URI's store give, or where it has none a thread that calls ``otherwise``."""
    parsed = parse_uri(uri)
    tasks = store_for(parsed).tasks()
    if tasks is None:
        return await _in_thread(otherwise, uri, *arguments)
    return await _wait_for(asked(tasks, parsed))


async def _wait_for(task: Task[Result]) -> Result:
    """Runs one of the package's coroutines in this event loop."""
    loop = asyncio.get_running_loop()
    error: BaseException | None = None
    while True:
        try:
            awaited = task.send(None) if error is None else task.throw(error)
        except StopIteration as end:
            result: Result = end.value
            return result
        error = None
        ended = loop.create_future()

        def wake(ended: asyncio.Future[None] = ended) -> None:
            with suppress(RuntimeError):  # the loop was closed, and nobody waits any more
                loop.call_soon_threadsafe(_set, ended)

        awaited.on_end(wake)
        try:
            await ended
        except BaseException as interrupt:  # a cancellation, which the task has to clear up after
            error = interrupt


async def _each_of(items: AsyncIterator[Item]) -> AsyncIterator[Item]:
    """What an asynchronous iterator of the package's yields; never None."""
    while (item := await _wait_for(next_of(items))) is not None:
        yield item


async def _in_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """Has a thread of the event loop's pool do this.  When it is cancelled it breaks that off, and waits for the thread
    to have cleared up: it uses the caller's memory."""
    cancellation = _cancel.Cancellation()
    has_begun = False

    def job() -> Result:
        nonlocal has_begun
        has_begun = True
        with cancellation.of_this_thread():
            _cancel.check()
            return work(*arguments)

    done = asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, job)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        cancellation.cancel()
        # Its failure is of no interest any more, and would be logged.
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        while has_begun and not done.done():  # else it will find that it need not begin
            with suppress(asyncio.CancelledError):
                await asyncio.wait([done])
        raise


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _for_each(
    items: Iterable[Item] | AsyncIterable[Item], work: Callable[[Item], Awaitable[None]], limit: int
) -> None:
    """Waits for ``work`` with each item, up to ``limit`` at once, each taken when there is room for it.

    When one fails no more are begun, and the first failure is raised once the others have ended.
    """
    todo = _Turns(items) if isinstance(items, AsyncIterable) else _each_in(items)
    failures: List[Exception] = []

    async def take_turns() -> None:
        try:
            async for item in todo:
                if failures:
                    return
                await work(item)
        except Exception as error:
            failures.append(error)
            if isinstance(todo, _Turns):
                todo.end()

    await asyncio.gather(*(take_turns() for _ in range(min(limit, _MAX_IN_FLIGHT))))
    if failures:
        raise failures[0]


async def _each_in(items: Iterable[Item]) -> AsyncIterator[Item]:
    for item in items:
        yield item


class _Turns(AsyncIterator[Item]):
    """What several tasks may take from, while an asynchronous generator serves one at a time."""

    def __init__(self, items: AsyncIterable[Item]) -> None:
        self._items = aiter(items)
        self._turn = asyncio.Lock()
        self._taking: asyncio.Task[Any] | None = None
        self._has_ended = False

    async def __anext__(self) -> Item:
        task = asyncio.current_task()
        assert task is not None
        async with self._turn:
            if self._has_ended:
                raise StopAsyncIteration
            self._taking = task
            try:
                return await anext(self._items)
            except asyncio.CancelledError:
                if self._has_ended and task.uncancel() == 0:
                    raise StopAsyncIteration from None
                raise
            finally:
                self._taking = None

    def end(self) -> None:
        """Gives nothing more, also to who is waiting for it."""
        self._has_ended = True
        if self._taking is not None:
            self._taking.cancel()
