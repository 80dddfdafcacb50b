"""``az://account/container/blob``: Azure Blob Storage."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from azure.core import MatchConditions

from s3dlio import _cancel, _errors
from s3dlio._native import ffi
from s3dlio._stores.azure_client import (
    Place,
    ask,
    blob_client,
    check_account,
    check_blob,
    container_client,
    new_thread,
    place_of,
    properties,
    start,
)
from s3dlio._stores.azure_settings import AzureSettings, current_settings
from s3dlio._stores.azure_upload import AzureSink, block_size, put_whole, verify
from s3dlio._stores.base import ObjectStat, StagedStream, Store, folder_error
from s3dlio._tasks import apart
from s3dlio._uri import Uri

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

    from s3dlio._options import WriterOptions

DEFAULT_BLOCK = 8 << 20
# A larger blob goes through a stream: in blocks, several at once.
WHOLE_NBYTES = 16 << 20
# What one request reads, of a large blob several at once.
RANGE = 8 << 20
RANGES_IN_FLIGHT = 8
# Names in one request of Blob Batch.
_BATCH = 256
_COPY_LOOKS = 0.2


class _Room:
    """Where a range goes, which can be taken away while a thread is still reading it."""

    def __init__(self, data: Any) -> None:
        self._lock = threading.Lock()
        self._data = data
        self._count = 0

    def write(self, chunk: bytes) -> int:
        with self._lock:
            if self._data is None:
                raise _errors.ClosedError("the read was broken off")
            if self._count + len(chunk) > len(self._data):
                raise _errors.StorageError("more bytes than were asked for")
            ffi.memmove(self._data + self._count, chunk, len(chunk))
            self._count += len(chunk)
        return len(chunk)

    def rewind(self) -> None:
        self._count = 0

    def is_full(self) -> bool:
        return self._data is not None and self._count == len(self._data)

    def take_away(self) -> None:
        with self._lock:
            self._data = None


class AzureSource:
    """One version of a blob: a read after it was replaced fails."""

    def __init__(self, settings: AzureSettings, place: Place, uri: Uri) -> None:
        self._settings = settings
        self._place = place
        self._uri = uri
        found = properties(settings, place, "open", uri)
        self._etag = found.etag
        self._size = int(found.size)

    @property
    def size(self) -> int:
        return self._size

    def readinto(self, start: int, data: Any) -> int:
        wanted = max(0, min(len(data), self._size - start))
        if wanted == 0:
            return 0
        rooms = {
            start + begin: _Room(ffi.from_buffer(ffi.buffer(data + begin, min(RANGE, wanted - begin))))
            for begin in range(0, wanted, RANGE)
        }
        try:
            if len(rooms) == 1:
                self._read(start, rooms[start], wanted, lambda: False)
            else:
                apart(lambda: self._read_all(rooms, start, wanted), may_stay=True)
        finally:
            for room in rooms.values():
                room.take_away()
        return wanted

    def _read_all(self, rooms: dict[int, _Room], first: int, wanted: int) -> None:
        """Reads all ranges in a few threads, whom nobody waits for once one has failed."""
        todo = iter(rooms.items())
        changed = threading.Condition()
        failures: list[BaseException] = []
        over = False
        left = len(rooms)

        def is_over() -> bool:
            return over

        def work() -> None:
            nonlocal left, over
            while True:
                with changed:
                    begin, room = next(todo, (0, None))
                    if room is None or over:
                        return
                failure = None
                try:
                    self._read(begin, room, min(RANGE, first + wanted - begin), is_over)
                except BaseException as error:
                    failure = error
                with changed:
                    if failure is None:
                        left -= 1
                    else:
                        failures.append(failure)  # before anybody can see that it is over
                        over = True
                    changed.notify()
                del failure

        try:
            for _ in range(min(RANGES_IN_FLIGHT, len(rooms))):
                start(new_thread(work), "read", self._uri)
            with changed:
                while left and not over:
                    _cancel.check()
                    changed.wait(0.2)
        finally:
            over = True  # also after Ctrl-C
        if failures:
            failed = failures[0]
            failures.clear()
            try:
                raise failed
            finally:
                del failed  # else its traceback and this frame hold each other

    def _read(self, start: int, room: _Room, length: int, is_over: Callable[[], bool]) -> None:
        expected = (206, f"bytes {start}-{start + length - 1}/{self._size}", self._etag)

        def look(answer: Any) -> None:
            head = answer.http_response
            found = (head.status_code, head.headers.get("Content-Range"), head.headers.get("ETag"))
            if head.status_code < 300 and found != expected:
                raise ValueError(f"the answer is of another range or version: {found}, not {expected}")

        def call() -> None:
            room.rewind()
            blob_client(self._settings, self._place).download_blob(
                offset=start,
                length=length,
                etag=self._etag,
                match_condition=MatchConditions.IfNotModified,
                max_concurrency=1,
                raw_response_hook=look,
            ).readinto(room)  # type: ignore[arg-type]  # of a stream it needs no more than write()

        try:
            ask(self._settings, "read", self._uri, call, is_over)
        except _errors.S3dlioError as error:
            if error.status in (412, 416):
                raise self._error("it was replaced since it was opened", errno.ESTALE) from error
            raise
        if not room.is_full():
            raise self._error(f"fewer than the {length} bytes from {start} on came")

    def _error(self, what: str, number: int | None = None) -> _errors.StorageError:
        return _errors.StorageError(f"read {self._uri}: {what}", operation="read", uri=str(self._uri), errno=number)

    def can_have(self, crc32c: int) -> bool:
        return True  # the service keeps no CRC32C

    def close(self) -> None:
        pass


class AzureStore(Store):
    """Containers and what is in them."""

    read_size = 8 << 20
    acts_late = True

    def create(self, uri: Uri, options: WriterOptions) -> StagedStream:
        settings, place = self._object(uri, "open", _errors.InvalidInputError)
        size = options.block_size() or DEFAULT_BLOCK
        sink = AzureSink(settings, place, uri, options)
        stream = StagedStream(
            sink, uri, replace(options, buffer_size=size), size_of=lambda index: block_size(index + 1, size)
        )
        sink.on_failure = stream.fail
        return stream

    def put(self, uri: Uri, data: bytes | Any, options: WriterOptions) -> None:
        if len(data) > WHOLE_NBYTES or options.compression:
            super().put(uri, data, options)
            return
        settings, place = self._object(uri, "put", _errors.InvalidInputError)
        view = memoryview(data if isinstance(data, bytes) else ffi.buffer(data))
        etag = put_whole(settings, place, uri, view, options, "put")
        if options.verify not in (None, "none"):
            verify(settings, place, uri, "put", etag, len(view))

    def put_if(self, uri: Uri, data: bytes, etag: str | None, options: WriterOptions) -> bool:
        settings, place = self._object(uri, "put", _errors.InvalidInputError)
        condition: dict[str, Any] = {"overwrite": False}
        if etag is not None:
            condition = {"overwrite": True, "etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}
        try:
            put_whole(settings, place, uri, memoryview(data), options, "put", **condition)
        except _errors.S3dlioError as error:
            if error.code in ("BlobAlreadyExists", "ConditionNotMet", "BlobNotFound"):
                return False
            raise
        return True

    def open(self, uri: Uri, *, once: bool = False) -> AzureSource:
        settings, place = self._object(uri, "open", _errors.NotFoundError)
        return AzureSource(settings, place, uri)

    def stat(self, uri: Uri) -> ObjectStat:
        settings, place = self._object(uri, "stat", _errors.NotFoundError)
        found = properties(settings, place, "stat", uri)
        return ObjectStat(
            size=int(found.size),
            last_modified=found.last_modified.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            etag=found.etag.strip('"'),
        )

    def copy(self, source: Uri, target: Uri) -> bool:
        settings, to = self._object(target, "copy", _errors.InvalidInputError)
        _, start = self._object(source, "copy", _errors.NotFoundError)
        if start.account != to.account:
            return False
        version = properties(settings, start, "copy", source)

        def begin() -> Any:
            return blob_client(settings, to).start_copy_from_url(
                blob_client(settings, start).url,
                source_etag=version.etag,
                source_match_condition=MatchConditions.IfNotModified,
            )["copy_status"]

        status = ask(settings, "copy", target, begin)
        deadline = time.monotonic() + settings.operation_timeout
        while status == "pending":
            if time.monotonic() > deadline:
                raise _errors.TimedOutError(f"copy {target}: still pending", operation="copy", uri=str(target))
            _cancel.check()
            time.sleep(_COPY_LOOKS)
            status = ask(settings, "copy", target, lambda: blob_client(settings, to).get_blob_properties().copy.status)
        if status != "success":
            raise _errors.StorageError(f"copy {target}: it ended as {status}", operation="copy", uri=str(target))
        return True

    def list(self, uri: Uri, recursive: bool) -> Iterator[Uri]:
        settings = current_settings()
        place = place_of(uri, settings, "list")
        folder = place.blob
        client = partial(container_client, settings, place)
        if folder and not folder.endswith("/"):
            # The blob itself is the first of all that begin with its name, if there is one.
            first = self._names(settings, uri, lambda: client().list_blobs(name_starts_with=folder, results_per_page=1))
            if next(first, None) == folder:
                yield uri
            folder += "/"
        if recursive:
            names = self._names(settings, uri, lambda: client().list_blobs(name_starts_with=folder or None))
        else:
            names = self._names(settings, uri, lambda: client().walk_blobs(name_starts_with=folder or None))
        for name in names:
            yield replace(uri, key=place.prefix + name)

    def _names(self, settings: AzureSettings, uri: Uri, begin: Callable[[], Any]) -> Iterator[str]:
        """The names page by page, in order; each page is asked for again when that fails."""
        token: str | None = None

        # Each time anew: after an error within its first page an iterator of the SDK's says that it is at its end.
        def call() -> tuple[list[str], str | None]:
            pages = begin().by_page(token)
            page = [each.name for each in next(pages)]
            return page, pages.continuation_token

        while True:
            page, token = ask(settings, "list", uri, call)
            # Folders and blobs are lists of their own in an answer.
            yield from sorted(page, key=str.encode)
            if not token:
                return

    def delete(self, uri: Uri, recursive: bool) -> None:
        settings = current_settings()
        place = place_of(uri, settings, "delete")
        if not recursive:
            check_account(place, uri, settings, "delete")
            if not place.blob:
                raise folder_error("delete", uri)
            if place.blob.endswith("/"):  # what some programs leave for an empty folder, or only a prefix
                try:
                    properties(settings, place, "delete", uri)
                except _errors.NotFoundError as error:
                    raise folder_error("delete", uri) from error
            self._delete_one(settings, place, uri)
            return
        found = self.list(uri, recursive=True)
        while batch := [*islice(found, _BATCH)]:
            places = [replace(place, blob=each.key[len(place.prefix) :]) for each in batch]
            self._delete_batch(settings, uri, dict(zip(batch, places, strict=True)))

    def _delete_one(self, settings: AzureSettings, place: Place, uri: Uri) -> None:
        try:
            ask(settings, "delete", uri, lambda: blob_client(settings, place).delete_blob("include"))
        except _errors.NotFoundError as error:
            if error.code != "BlobNotFound":
                raise

    def _delete_batch(self, settings: AzureSettings, uri: Uri, blobs: dict[Uri, Place]) -> None:
        names = [place.blob for place in blobs.values()]
        place = next(iter(blobs.values()))

        def call() -> list[int]:
            client = container_client(settings, place)
            answers = client.delete_blobs(*names, delete_snapshots="include", raise_on_any_failure=False)
            return [answer.status_code for answer in answers]

        statuses = ask(settings, "delete", uri, call)
        # One went wrong alone, or has a name that the SDK or the service does not take in a batch; which one it is
        # their order need not tell.
        if len(statuses) != len(names) or not {202, 404}.issuperset(statuses):
            for each, place in blobs.items():
                self._delete_one(settings, place, each)

    def create_bucket(self, uri: Uri) -> None:
        settings, client = self._container(uri, "create container")
        try:
            ask(settings, "create container", uri, lambda: client().create_container())
        except _errors.S3dlioError as error:
            if error.code != "ContainerAlreadyExists":
                raise

    def delete_bucket(self, uri: Uri) -> None:
        settings, client = self._container(uri, "delete container")
        # The service would delete it with all that is in it.
        if next(self._names(settings, uri, lambda: client().list_blobs(results_per_page=1)), None) is not None:
            raise _errors.StorageError(
                f"delete container {uri}: it is not empty; delete its objects first",
                operation="delete container",
                uri=str(uri),
                errno=errno.ENOTEMPTY,
            )
        try:
            ask(settings, "delete container", uri, lambda: client().delete_container())
        except _errors.NotFoundError as error:
            if error.attempts == 1:  # else an acknowledgement was lost
                raise

    def _object(self, uri: Uri, operation: str, kind: type[_errors.S3dlioError]) -> tuple[AzureSettings, Place]:
        settings = current_settings()
        place = place_of(uri, settings, operation)
        check_account(place, uri, settings, operation)
        check_blob(place, uri, operation, kind)
        return settings, place

    def _container(self, uri: Uri, operation: str) -> tuple[AzureSettings, Callable[[], ContainerClient]]:
        settings = current_settings()
        place = place_of(uri, settings, operation)
        if place.blob:
            text = f"{operation} {uri}: it must be az://account/container"
            raise _errors.InvalidInputError(text, operation=operation, uri=str(uri))
        return settings, partial(container_client, settings, place)
