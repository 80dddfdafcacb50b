"""Files of this machine: ``file://`` through the page cache, ``direct://`` with O_DIRECT.

The library does the work, from the first copy to the rename; there is no Python on the way of a block.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any

from s3dlio import _cancel, _errors
from s3dlio._logging import logger
from s3dlio._native import SLICE_MS, check, ffi, lib, new_handle, raise_status
from s3dlio._stores.base import ObjectStat, Store, WriterStats, folder_error
from s3dlio._uri import Uri

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions

_DURABILITY = {
    "full": lib.S3DLIO_DURABILITY_FULL,
    "data": lib.S3DLIO_DURABILITY_DATA,
    "none": lib.S3DLIO_DURABILITY_NONE,
}

# The longest object that is stored in one call, which Ctrl-C does not break off.
_WHOLE_NBYTES = 1 << 20

# Seconds that another process may take for `put_if`, which is for hints.  Anyone who may read the folder can hold its
# lock, and a signal handler meets that of its own thread.
_LOCK_TIMEOUT = 5.0

# Seconds since 1970 that a date of four digits can tell; a file may have any.
_FIRST, _LAST = -62135596800, 253402300799

# The hidden names under which the library makes files (csrc/src/hidden.h).
_HIDDEN = re.compile(r"\..+\.s3dlio-[0-9]{1,2}", re.DOTALL)


class FileStream:
    """A file on its way: hidden until `finish` has made it durable and renamed it into place."""

    def __init__(self, uri: Uri, options: Any) -> None:
        self._uri = str(uri)
        self._handle = new_handle("s3dlio_writer")
        check(lib.s3dlio_writer_open(self._handle, os.fsencode(uri.key), options), "open", self._uri)
        self._writer = self._handle[0]
        self._taken = ffi.new("size_t *")

    def append(self, data: Any) -> bool:
        appended: int = lib.s3dlio_writer_append(self._writer, data, len(data))
        return appended == 1

    def write(self, data: Any) -> None:
        nbytes = len(data)
        status = lib.s3dlio_writer_write(self._writer, data, nbytes, self._taken)
        done = 0
        while status == -errno.EAGAIN:
            _cancel.check()
            done += self._taken[0]
            status = lib.s3dlio_writer_write(self._writer, data + done, nbytes - done, self._taken)
        if status < 0:
            raise_status(status, "write", self._uri)

    def finish(self) -> None:
        while (status := lib.s3dlio_writer_close(self._writer)) == -errno.EAGAIN:
            _cancel.check()
        check(status, "finalize", self._uri)

    def abort(self) -> None:
        lib.s3dlio_writer_abort(self._writer)

    def drop(self) -> None:
        self.abort()

    def stats(self) -> WriterStats:
        stats = ffi.new("struct s3dlio_writer_stats *")
        # Busy while another thread appends, which is over in a moment.
        while (status := lib.s3dlio_writer_get_stats(self._writer, stats, ffi.sizeof(stats[0]))) == lib.S3DLIO_E_BUSY:
            time.sleep(0)
        check(status, "stats", self._uri)
        return WriterStats(
            io_engine=ffi.string(stats.engine).decode(),
            direct=bool(stats.direct),
            direct_reason=os.strerror(-stats.direct_error) if stats.direct_error else None,
            registered=bool(stats.registered),
            block_size=stats.block_nbytes,
            blocks=stats.nblocks,
            bytes_written=stats.raw_nbytes,
            compressed_bytes=stats.stored_nbytes,
            crc32c=stats.raw_crc32c,
            stored_crc32c=stats.stored_crc32c,
            wait_seconds=stats.wait_ns / 1e9,
            visible=bool(stats.published),
        )


class FileSource:
    """A file opened for reading; it stays the same file when its name is given to another one."""

    def __init__(self, uri: Uri, direct: int) -> None:
        self._uri = str(uri)
        o = ffi.new("struct s3dlio_reader_options *", {"struct_nbytes": ffi.sizeof("struct s3dlio_reader_options")})
        o.direct = direct
        o.slice_ms = SLICE_MS
        self._handle = new_handle("s3dlio_reader")
        check(lib.s3dlio_reader_open(self._handle, os.fsencode(uri.key), o), "open", self._uri)
        self._reader = self._handle[0]
        self._size: int = lib.s3dlio_reader_nbytes(self._reader)

    @property
    def size(self) -> int:
        return self._size

    def readinto(self, start: int, data: Any) -> int:
        # Held until the call is over, also when another thread closes meanwhile.
        handle, reader = self._handle, self._reader
        if reader is None:
            raise _errors.ClosedError(f"read {self._uri}: already closed", operation="read", uri=self._uri)
        try:
            while True:
                result: int = lib.s3dlio_reader_read(reader, data, len(data), start, ffi.NULL)
                if result != -errno.EAGAIN:
                    break
                _cancel.check()
            if result == -errno.ETIMEDOUT:
                self._let_go(reader)
        except BaseException:
            self._let_go(reader)
            raise
        finally:
            del handle
        return check(result, "read", self._uri)

    def can_have(self, crc32c: int) -> bool:
        return True

    def _let_go(self, reader: Any) -> None:
        """Waits until nothing writes to the memory of a read that was broken off.  It is the caller's, who will use it
        for something else next: there is no going on before, also not by another Ctrl-C."""
        while True:
            try:
                if lib.s3dlio_reader_cancel(reader) != -errno.ETIMEDOUT:
                    break
                logger.warning("read %s: broken off, but the device does not let go of the memory", self._uri)
            except KeyboardInterrupt:
                continue

    def close(self) -> None:
        self._reader = self._handle = None


class FileStore(Store):
    """The files of this machine.  An object is a regular file, or a link to one; a prefix is a folder."""

    shares_tags = False  # some network file systems give each mount inode numbers of its own

    def __init__(self, direct: bool) -> None:
        self._direct = direct

    def create(self, uri: Uri, options: WriterOptions) -> FileStream:
        return FileStream(uri, self._library_options(options))

    def put(self, uri: Uri, data: Any, options: WriterOptions) -> None:
        if len(data) > _WHOLE_NBYTES or options.compression:
            super().put(uri, data, options)
            return
        status = lib.s3dlio_writer_put(os.fsencode(uri.key), data, len(data), self._library_options(options))
        if status:
            raise_status(status, "put", str(uri))

    def put_if(self, uri: Uri, data: bytes, etag: str | None, options: WriterOptions) -> bool:
        try:
            with _locked(os.path.dirname(uri.key) or "/", uri):
                try:
                    found = self.stat(uri)["etag"]
                except _errors.NotFoundError:
                    found = None
                if found != etag:
                    return False
                self.put(uri, data, options)
                return True
        except OSError as error:
            if isinstance(error, _errors.S3dlioError):
                raise
            raise _translate(error, "put", uri) from error

    def _library_options(self, options: WriterOptions) -> Any:
        """``struct s3dlio_writer_options *``, which the library only reads."""
        if options.require_direct:
            direct = lib.S3DLIO_DIRECT_REQUIRE
        elif options.direct is None:
            direct = lib.S3DLIO_DIRECT_PREFER if self._direct else lib.S3DLIO_DIRECT_AUTO
        else:
            direct = lib.S3DLIO_DIRECT_PREFER if options.direct else lib.S3DLIO_DIRECT_OFF
        return _make_options(
            options.block_size(),
            options.in_flight or 0,
            options.level if options.compression else 0,
            -1 if options.threads is None else options.threads,
            _DURABILITY[options.durability],
            direct,
            not options.create_parents,
            int(options.timeout * 1000),
        )

    def open(self, uri: Uri, *, once: bool = False) -> FileSource:
        if self._direct:
            return FileSource(uri, lib.S3DLIO_DIRECT_PREFER)
        return FileSource(uri, lib.S3DLIO_DIRECT_AUTO if once else lib.S3DLIO_DIRECT_OFF)

    def stat(self, uri: Uri) -> ObjectStat:
        try:
            info = os.stat(uri.key)
        except OSError as error:
            raise _translate(error, "stat", uri) from error
        if not S_ISREG(info.st_mode):
            code = -errno.EISDIR if S_ISDIR(info.st_mode) else lib.S3DLIO_E_NOT_REGULAR
            raise_status(code, "stat", str(uri))
        seconds = min(max(info.st_mtime_ns // 1_000_000_000, _FIRST), _LAST)
        changed = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
        return ObjectStat(
            size=info.st_size,
            last_modified=f"{changed}.{info.st_mtime_ns % 1_000_000_000:09d}Z",
            etag=f"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}",
        )

    def list(self, uri: Uri, recursive: bool) -> Iterator[Uri]:
        try:
            # Not os.path.isdir(): that takes a folder which may not be looked into for none at all.
            mode = os.stat(uri.key).st_mode
            if S_ISDIR(mode):
                yield from self._walk(uri, uri.key.rstrip("/") + "/", recursive)
            elif S_ISREG(mode):
                yield uri
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or _leads_nowhere(uri.key):
                raise _translate(error, "list", Uri(uri.scheme, "", error.filename or uri.key)) from error

    def _walk(self, uri: Uri, folder: str, recursive: bool) -> Iterator[Uri]:
        todo = [folder]
        while todo:
            place = todo.pop()
            if not place.endswith("/") or (place != folder and not recursive):
                yield Uri(uri.scheme, "", place)
                continue
            try:
                # With the slash a folder stands where object stores put its keys: after 's.z', before 's0'.
                names = sorted(_names(place), reverse=True)
            except (FileNotFoundError, NotADirectoryError):  # deleted meanwhile, and so without objects
                if place == folder:
                    raise
                continue
            todo += [place + name for name in names]

    def delete(self, uri: Uri, recursive: bool) -> None:
        # Strings, not Path: that would take 'f/' for the file 'f'.
        path = uri.key
        try:
            link = path.rstrip("/")
            if recursive and os.path.islink(link) and (path == link or not os.path.isfile(link)):
                os.unlink(link)  # also of 'link/' only the link: what it names may be anywhere
            elif not os.path.isdir(path) or os.path.islink(path):
                os.unlink(path)
            elif recursive:
                _refuse_mount_point(path, uri)
                shutil.rmtree(path)
            else:
                raise folder_error("delete", uri)
        except _errors.S3dlioError:
            raise
        except OSError as error:
            # Inside a folder somebody else's deletion may have come in between: then not all is gone.
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)) or os.path.lexists(path):
                raise _translate(error, "delete", uri) from error

    def sync(self, uri: Uri) -> None:
        try:
            fd = os.open(uri.key, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translate(error, "delete", uri) from error


@contextmanager
def _locked(folder: str, uri: Uri) -> Iterator[None]:
    """Meanwhile no other `put_if` changes what is in the folder."""
    os.makedirs(folder, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    text = f"put {uri}: another process has held the lock of {folder} for {_LOCK_TIMEOUT:g} s"
                    raise _errors.TimedOutError(text, operation="put", uri=str(uri)) from None
                _cancel.check()
                time.sleep(0.001)
            except OSError as error:
                # A file system that has no locks, or as NFS none of folders ("flock(2)", "NFS details").
                if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                break
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child of a fork may hold on to the descriptor
        os.close(fd)


@lru_cache(64)
def _make_options(
    block_nbytes: int,
    in_flight: int,
    zstd_level: int,
    zstd_workers: int,
    durability: int,
    direct: int,
    no_parents: bool,
    timeout_ms: int,
) -> Any:
    o = ffi.new("struct s3dlio_writer_options *", {"struct_nbytes": ffi.sizeof("struct s3dlio_writer_options")})
    o.block_nbytes = block_nbytes
    o.in_flight = in_flight
    o.zstd_level = zstd_level
    o.zstd_workers = zstd_workers
    o.durability = durability
    o.direct = direct
    o.no_parents = no_parents
    o.slice_ms = SLICE_MS
    o.timeout_ms = timeout_ms
    return o


def _names(folder: str) -> Iterator[str]:
    """The objects in a folder, and with a slash the folders.  A link to a folder is passed over: it could lead
    anywhere, also back here."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield entry.name + "/"
            elif not _HIDDEN.fullmatch(entry.name) and _is_file(entry):
                yield entry.name


def _leads_nowhere(path: str) -> bool:
    """Whether it is missing behind a link, as to a disk that is not mounted: that is no empty folder."""
    while not os.path.exists(path):
        path = path.rstrip("/")
        if os.path.islink(path):
            return True
        path = os.path.dirname(path)
    return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # a link that leads round in a circle, or nowhere
            return False
        raise


def _refuse_mount_point(path: str, uri: Uri) -> None:
    """The root of a file system, this machine's above all, is no folder of objects, whatever its spelling ('/', '//',
    '/tmp/..'), and a folder that another file system is mounted in is not deleted through the mount."""
    top = os.path.realpath(path)
    for folder in chain(_mount_points(top), (folder for folder, _, _ in os.walk(top) if os.path.ismount(folder))):
        raise _errors.InvalidInputError(
            f"delete {uri}: {folder} is the root of a file system; delete what is in it by name",
            operation="delete",
            uri=str(uri),
        )


def _mount_points(top: str) -> Iterator[str]:
    """Those in a folder, as the kernel tells (proc_pid_mountinfo(5)): a folder of the same file system that is mounted
    there too (mount --bind) looks like any other."""
    with suppress(OSError), open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            number, _, _, _, point, *_ = line.split()
            path = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda escape: bytes([int(escape[1], 8)]), point))
            # Where it has another number, another one is mounted over it.
            if (path == top or path.startswith(top.rstrip("/") + "/")) and _mount_of(path) == number:
                yield path


def _mount_of(path: str) -> bytes | None:
    """The number of the mount that a folder is in."""
    with suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            with open(f"/proc/self/fdinfo/{fd}", "rb") as about:
                return next((line.split()[1] for line in about if line.startswith(b"mnt_id:")), None)
        finally:
            os.close(fd)
    return None


def _translate(error: OSError, operation: str, uri: Uri) -> _errors.S3dlioError:
    try:
        raise_status(-(error.errno or errno.EIO), operation, str(uri))
    except _errors.S3dlioError as translated:
        return translated
