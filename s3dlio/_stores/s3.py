"""``s3://bucket/key``: Amazon S3 and compatible stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from s3dlio._stores.base import ObjectStat, StagedStream, StaleUpload, Store
from s3dlio._stores.s3_client import connection_for
from s3dlio._stores.s3_settings import current_settings
from s3dlio._stores.s3_tasks import S3Tasks, Version, check_object
from s3dlio._stores.s3_upload import MIN_PART, S3Sink, part_size
from s3dlio._tasks import run, run_each
from s3dlio._uri import Uri

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions

DEFAULT_BLOCK = 8 << 20
# A larger object goes through a stream: in parts, several at once.
WHOLE_NBYTES = 16 << 20


class S3Source:
    """One version of an object, opened for reading."""

    def __init__(self, tasks: S3Tasks, version: Version) -> None:
        self._tasks = tasks
        self._version = version

    @property
    def size(self) -> int:
        return self._version.size

    def readinto(self, start: int, data: Any) -> int:
        return run(self._tasks.read(self._version, start, data))

    def can_have(self, crc32c: int) -> bool:
        return self._version.can_have(crc32c)

    def close(self) -> None:
        pass


class S3Store(Store):
    """Buckets and what is in them.  What needs requests alone is a task."""

    read_size = 8 << 20
    acts_late = True

    def tasks(self) -> S3Tasks:
        return S3Tasks(connection_for(current_settings()))

    def create(self, uri: Uri, options: WriterOptions) -> StagedStream:
        check_object(uri, "open")
        size = max(options.block_size() or DEFAULT_BLOCK, MIN_PART)
        sink = S3Sink(connection_for(current_settings()), uri, options)
        stream = StagedStream(
            sink, uri, replace(options, buffer_size=size), size_of=lambda index: part_size(index + 1, size)
        )
        sink.on_failure = stream.fail
        return stream

    def put(self, uri: Uri, data: bytes | Any, options: WriterOptions) -> None:
        tasks = self.tasks_for_put(data, options)
        if tasks is None:
            super().put(uri, data, options)
        else:
            run(tasks.put(uri, data, options))

    def put_if(self, uri: Uri, data: bytes, etag: str | None, options: WriterOptions) -> bool:
        return run(self.tasks().put_if(uri, data, etag, options))

    def tasks_for_put(self, data: bytes | Any, options: WriterOptions) -> S3Tasks | None:
        is_small = len(data) <= WHOLE_NBYTES and not options.compression
        return self.tasks() if is_small else None

    def open(self, uri: Uri, *, once: bool = False) -> S3Source:
        tasks = self.tasks()
        return S3Source(tasks, run(tasks.open(uri)))

    def get(self, uri: Uri) -> bytes:
        return run(self.tasks().get(uri))

    def stat(self, uri: Uri) -> ObjectStat:
        return run(self.tasks().stat(uri))

    def copy(self, source: Uri, target: Uri) -> bool:
        return run(self.tasks().copy(source, target))

    def list(self, uri: Uri, recursive: bool) -> Iterator[Uri]:
        return run_each(self.tasks().list(uri, recursive))

    def delete(self, uri: Uri, recursive: bool) -> None:
        run(self.tasks().delete(uri, recursive))

    def create_bucket(self, uri: Uri) -> None:
        run(self.tasks().create_bucket(uri))

    def delete_bucket(self, uri: Uri) -> None:
        run(self.tasks().delete_bucket(uri))

    def stale_uploads(self, uri: Uri) -> Iterator[StaleUpload]:
        return run_each(self.tasks().stale_uploads(uri))

    def abort_upload(self, uri: Uri, upload_id: str) -> None:
        run(self.tasks().abort_upload(uri, upload_id))
