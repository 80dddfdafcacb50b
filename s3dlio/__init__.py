"""Moves large bytes between Python and storage: complete, durable and verified, or not there at all.

>>> import s3dlio
>>> with s3dlio.open_writer("memory://demo/hello") as writer:
...     writer.write_chunk(b"hello world")
>>> writer.checksum()
'crc32c:c99465aa'
>>> s3dlio.get("memory://demo/hello")
b'hello world'
"""

import importlib as _importlib
import typing as _typing

from s3dlio._checksum import crc32c, crc32c_combine
from s3dlio._errors import (
    BusyError,
    ClosedError,
    CorruptDataError,
    ForkedError,
    InvalidInputError,
    NotAnObjectError,
    NotFoundError,
    PermissionDeniedError,
    S3dlioError,
    StorageError,
    TimedOutError,
    UnsupportedError,
)
from s3dlio._logging import init_logging
from s3dlio._many import get_many, put_many
from s3dlio._multipart import MultipartUploadWriter, UploadResult
from s3dlio._native import version
from s3dlio._ops import (
    abort_stale_uploads,
    create_azure_writer,
    create_bucket,
    create_direct_filesystem_writer,
    create_filesystem_writer,
    create_s3_writer,
    delete,
    delete_bucket,
    exists,
    get,
    get_range,
    iter_objects,
    list_stale_uploads,
    put,
    stat,
)
from s3dlio._ops import list_objects as list
from s3dlio._options import WriterOptions
from s3dlio._reader import open_reader
from s3dlio._stores.base import ObjectStat, StaleUpload, WriterStats
from s3dlio._transfer import copy, download, upload
from s3dlio._writer import ObjectWriter, open_writer

if _typing.TYPE_CHECKING:
    from s3dlio import aio
    from s3dlio._stores.azure_settings import configure_azure
    from s3dlio._stores.s3_settings import configure_s3
    from s3dlio.checkpoint import (
        CheckpointInfo,
        CheckpointReader,
        CheckpointStore,
        CheckpointWriter,
        PyCheckpointInfo,
        PyCheckpointReader,
        PyCheckpointStore,
        PyCheckpointStream,
        PyCheckpointWriter,
        ShardStream,
        finalize_distributed_checkpoint,
        load_checkpoint,
        load_checkpoint_with_validation,
        save_checkpoint,
        save_distributed_shard,
    )

# The reference's names.
PyObjectWriter = ObjectWriter
PyWriterOptions = WriterOptions

# What `get` and its relatives return: all that a view of bytes can do, without another copy.
BytesView = bytes

__version__ = version()

__all__ = [
    "BusyError",
    "BytesView",
    "CheckpointInfo",
    "CheckpointReader",
    "CheckpointStore",
    "CheckpointWriter",
    "ClosedError",
    "CorruptDataError",
    "ForkedError",
    "InvalidInputError",
    "MultipartUploadWriter",
    "NotAnObjectError",
    "NotFoundError",
    "ObjectStat",
    "ObjectWriter",
    "PermissionDeniedError",
    "PyCheckpointInfo",
    "PyCheckpointReader",
    "PyCheckpointStore",
    "PyCheckpointStream",
    "PyCheckpointWriter",
    "PyObjectWriter",
    "PyWriterOptions",
    "S3dlioError",
    "ShardStream",
    "StaleUpload",
    "StorageError",
    "TimedOutError",
    "UnsupportedError",
    "UploadResult",
    "WriterOptions",
    "WriterStats",
    "__version__",
    "abort_stale_uploads",
    "aio",
    "configure_azure",
    "configure_s3",
    "copy",
    "crc32c",
    "crc32c_combine",
    "create_azure_writer",
    "create_bucket",
    "create_direct_filesystem_writer",
    "create_filesystem_writer",
    "create_s3_writer",
    "delete",
    "delete_bucket",
    "download",
    "exists",
    "finalize_distributed_checkpoint",
    "get",
    "get_many",
    "get_range",
    "init_logging",
    "iter_objects",
    "list",
    "list_stale_uploads",
    "load_checkpoint",
    "load_checkpoint_with_validation",
    "open_reader",
    "open_writer",
    "put",
    "put_many",
    "save_checkpoint",
    "save_distributed_shard",
    "stat",
    "upload",
    "version",
]


def __dir__() -> _typing.Iterable[str]:
    return {*globals(), *__all__}


def __getattr__(name: str) -> object:
    # asyncio takes longer to import than all of this package, and not everybody uses S3, Azure or checkpoints.
    if name == "aio":
        return _importlib.import_module("s3dlio.aio")
    if name in ("configure_azure", "configure_s3"):
        store = name.removeprefix("configure_")
        return getattr(_importlib.import_module(f"s3dlio._stores.{store}_settings"), name)
    if name in __all__:
        return getattr(_importlib.import_module("s3dlio.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
