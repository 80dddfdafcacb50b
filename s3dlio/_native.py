"""The gate to the compiled library: the only importer of its modules, and where its codes become errors."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from s3dlio import _errors
from s3dlio._buffers import Held, crc32c
from s3dlio._libs3dlio import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["SLICE_MS", "check", "crc32c", "ffi", "lib", "new_bytes", "new_handle", "pointer", "raise_status"]

# How long one call into the library lasts at most, so that Python can run its signal handlers.
SLICE_MS = 100

_KINDS: dict[int, type[_errors.S3dlioError]] = {
    lib.S3DLIO_E_CORRUPT: _errors.CorruptDataError,
    lib.S3DLIO_E_TRUNCATED: _errors.CorruptDataError,
    lib.S3DLIO_E_CLOSED: _errors.ClosedError,
    lib.S3DLIO_E_BUSY: _errors.BusyError,
    lib.S3DLIO_E_FORKED: _errors.ForkedError,
    lib.S3DLIO_E_NO_DIRECT: _errors.UnsupportedError,
    lib.S3DLIO_E_BAD_ENGINE: _errors.InvalidInputError,
    lib.S3DLIO_E_ZSTD: _errors.StorageError,
    lib.S3DLIO_E_NOT_REGULAR: _errors.NotAnObjectError,
    lib.S3DLIO_E_RESERVED_NAME: _errors.InvalidInputError,
    -errno.ENOENT: _errors.NotFoundError,
    -errno.ENOTDIR: _errors.NotFoundError,  # below a file there is nothing
    -errno.EISDIR: _errors.NotAnObjectError,
    -errno.EACCES: _errors.PermissionDeniedError,
    -errno.EPERM: _errors.PermissionDeniedError,
    -errno.EROFS: _errors.PermissionDeniedError,
    -errno.ETIMEDOUT: _errors.TimedOutError,
    -errno.EINVAL: _errors.InvalidInputError,
}


def raise_status(status: int, operation: str, uri: str) -> NoReturn:
    """Raises the error of a negative code of the library."""
    room = ffi.new("char[]", 128)
    cause = ffi.string(lib.s3dlio_status_text(status, room, len(room))).decode(errors="replace")
    number = -status if -4096 < status < 0 else None
    kind = _KINDS.get(status, _errors.StorageError)
    raise kind(f"{operation} {uri}: {cause}", operation=operation, uri=uri, errno=number)


def check(status: int, operation: str, uri: str) -> int:
    """Returns a result of the library if it is no failure."""
    if status < 0:
        raise_status(status, operation, uri)
    return status


def new_handle(kind: str) -> Any:
    """A place for a handle of the library, ``struct kind **``, that frees what is put there.

    It owns the handle from the moment the library has made it; a signal between that moment and a later `ffi.gc` would
    leak it.
    """
    return ffi.gc(ffi.new(f"struct {kind} **"), getattr(lib, f"{kind}_free_at"))


@cache
def _bytes_maker() -> Callable[[None, int], bytes]:
    from ctypes import PYFUNCTYPE, c_char_p, c_ssize_t, py_object, pythonapi  # 5 ms that an import need not take

    return PYFUNCTYPE(py_object, c_char_p, c_ssize_t)(("PyBytes_FromStringAndSize", pythonapi))


def new_bytes(nbytes: int) -> bytes:
    """A bytes object whose content is yet to be filled in through ``ffi.from_buffer``.

    CPython allows that for an object from ``PyBytes_FromStringAndSize(NULL, n)`` that nobody else has seen.  It spares
    a copy of everything that is read.
    """
    if nbytes == 0:
        return b""
    data: bytes = _bytes_maker()(None, nbytes)
    lib.s3dlio_buffer_advise(ffi.from_buffer(data), nbytes)
    return data


def pointer(buffer: Buffer, *, writable: bool = False) -> Any:
    """A C pointer to the bytes of a C-contiguous buffer; ``len()`` of it is their count."""
    try:
        # The bytes of an array of objects are addresses.
        if getattr(getattr(buffer, "dtype", None), "hasobject", False):
            raise TypeError("an array of Python objects has no bytes of its own")
        # Held, so that errors which keep the buffer do no harm: see cmake/python/_buffers.c.
        plain = buffer if type(buffer) in (bytes, bytearray) else Held(buffer)
        return ffi.from_buffer(plain, require_writable=writable)
    except (BufferError, ValueError) as error:  # numpy says ValueError
        if writable and "not writable" in str(error):
            raise _errors.InvalidInputError("memory that can be written to is needed, and this is read-only") from error
        raise _errors.InvalidInputError(
            f"a C-contiguous buffer is needed, as of numpy.ascontiguousarray(): {error}"
        ) from error
    except TypeError:
        if isinstance(buffer, str):
            raise TypeError("a bytes-like object is needed, not str: encode it first") from None
        if hasattr(buffer, "numpy"):
            raise TypeError(f"a bytes-like object is needed, not {type(buffer).__name__}: its numpy() is one") from None
        raise


def version() -> str:
    """Returns the version of the library and of the package, which are one."""
    text: str = ffi.string(lib.s3dlio_version()).decode()
    return text
