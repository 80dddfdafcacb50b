"""What s3dlio raises.  Each error is an S3dlioError, and also the built-in that fits.

S3dlioError (RuntimeError)
├── InvalidInputError       ValueError              a URI, an option or a range that cannot be
├── NotFoundError           FileNotFoundError       no such object, folder or bucket
├── NotAnObjectError        IsADirectoryError       a folder, a device, ... where an object was expected
├── PermissionDeniedError   PermissionError         credentials, mode, or a read-only file system
├── TimedOutError           TimeoutError            no progress within the deadline
├── StorageError            OSError                 any other failure of the system: no space, I/O error
├── CorruptDataError        ValueError              the bytes are not those that were written
├── ClosedError             ValueError              the handle was finalized, closed or aborted before
├── BusyError                                       another call is using the handle
├── ForkedError                                     the handle was made by the parent of this process
└── UnsupportedError        io.UnsupportedOperation what this store or this machine does not offer

Passing an object of the wrong type is a plain TypeError.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any

# A name may hold them, and would begin a line of its own in somebody's log.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(text: str) -> str:
    """A text for one line."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


class S3dlioError(RuntimeError):
    """The base of all errors of s3dlio.

    ``operation`` and ``uri`` tell what was tried on which object, ``errno`` the system's number if there is one.  From
    a server, ``status`` is that of HTTP, ``code`` and ``request_id`` are its own, and ``attempts`` says how often the
    request was sent.
    """

    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    attempts: int | None = None

    def __init__(
        self, message: str, *, operation: str | None = None, uri: str | None = None, errno: int | None = None
    ) -> None:
        message = shown(message)
        super().__init__(message)
        self.operation = operation
        self.uri = uri
        self.errno = errno
        if isinstance(self, OSError):  # what a handler of OSError looks at
            facts = {"strerror": os.strerror(errno) if errno else message, "filename": uri}
            for name, value in facts.items():
                setattr(self, name, value)

    def __str__(self) -> str:
        # OSError would print its own pattern as soon as errno is set.
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders, for instance out of the workers of a data loader.
        facts = {name: getattr(self, name) for name in ("status", "code", "request_id", "attempts")}
        return _rebuild, (type(self), self.args[0], self.operation, self.uri, self.errno, facts)


def copy_of(error: S3dlioError) -> S3dlioError:
    """The same error without its traceback, which holds on to the frames it went through and what lies in them."""
    rebuild, arguments = error.__reduce__()
    copy: S3dlioError = rebuild(*arguments)
    copy.__cause__ = error.__cause__
    return copy


def _rebuild(
    kind: type[S3dlioError],
    message: str,
    operation: str | None,
    uri: str | None,
    errno: int | None,
    facts: dict[str, Any],
) -> S3dlioError:
    error = kind(message, operation=operation, uri=uri, errno=errno)
    for name, value in facts.items():
        setattr(error, name, value)
    return error


class InvalidInputError(S3dlioError, ValueError):
    """A URI, an option or a range that cannot be."""


class NotFoundError(S3dlioError, FileNotFoundError):
    """There is no such object, folder or bucket."""


class NotAnObjectError(S3dlioError, IsADirectoryError):
    """A folder, a device or a pipe stands where an object was expected."""


class PermissionDeniedError(S3dlioError, PermissionError):
    """The store does not allow this."""


class TimedOutError(S3dlioError, TimeoutError):
    """There was no progress within the deadline."""


class StorageError(S3dlioError, OSError):
    """The system failed: no space, an I/O error, a lost connection."""


class CorruptDataError(S3dlioError, ValueError):
    """The bytes are not those that were written, or not all of them."""


class ClosedError(S3dlioError, ValueError):
    """The handle was finalized, closed or aborted before."""


class BusyError(S3dlioError):
    """Another thread is using the handle, or this one is, and a signal handler has come in between."""


class ForkedError(S3dlioError):
    """The handle was made by the parent of this process and does not work after a fork."""


class UnsupportedError(S3dlioError, io.UnsupportedOperation):
    """This store or this machine does not offer what was asked for."""


for _kind in (S3dlioError, *S3dlioError.__subclasses__()):
    _kind.__module__ = "s3dlio"  # where it is found, for tracebacks and pickles
del _kind
