"""Moves large bytes between Python and storage: complete, durable and verified, or not there at all.

>>> import s3dlio
>>> with s3dlio.open_writer("memory://demo/hello") as writer:
...     writer.write_chunk(b"hello world")
>>> writer.checksum()
'crc32c:c99465aa'
>>> s3dlio.get("memory://demo/hello")
b'hello world'
"""

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
from s3dlio._stores.s3_settings import configure_s3
from s3dlio._transfer import copy, download, upload
from s3dlio._writer import ObjectWriter, open_writer

# The reference's names.
PyObjectWriter = ObjectWriter
PyWriterOptions = WriterOptions

__version__ = version()

__all__ = [
    "BusyError",
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
    "PyObjectWriter",
    "PyWriterOptions",
    "S3dlioError",
    "StaleUpload",
    "StorageError",
    "TimedOutError",
    "UnsupportedError",
    "UploadResult",
    "WriterOptions",
    "WriterStats",
    "__version__",
    "abort_stale_uploads",
    "configure_s3",
    "copy",
    "crc32c",
    "crc32c_combine",
    "create_bucket",
    "create_direct_filesystem_writer",
    "create_filesystem_writer",
    "create_s3_writer",
    "delete",
    "delete_bucket",
    "download",
    "exists",
    "get",
    "get_many",
    "get_range",
    "init_logging",
    "iter_objects",
    "list",
    "list_stale_uploads",
    "open_reader",
    "open_writer",
    "put",
    "put_many",
    "stat",
    "upload",
    "version",
]
