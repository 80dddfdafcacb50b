"""Settings of writers, checked when they are given."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from s3dlio._errors import InvalidInputError, UnsupportedError
from s3dlio._native import lib
from s3dlio._uri import Uri

MIN_BLOCK_SIZE = 64 << 10
MAX_BLOCK_SIZE = 64 << 20

# RFC 9110, section 8.3.1, and nothing that could end a header.
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[\x20-\x7e]+")

DURABILITIES = ("none", "data", "full")


@dataclass(frozen=True, kw_only=True, eq=False)
class WriterOptions:
    """How an object is written.  Every writer takes its settings when it is made; changing them later has no effect.

    Keywords and defaults:

    ``compression=None``
        ``'zstd'`` stores a zstd frame under the name with ``.zst`` appended (once); ``None`` stores the bytes as they
        come.
    ``level=3``
        Compression level, 1 (fast) to 22 (small).  Above 15 a job of one of the threads takes seconds to minutes, which
        neither a write nor `finalize` can break off, and memory grows: hundreds of MiB at 19, gigabytes
        at 22.
    ``threads=None``
        Compression threads beside the caller; ``None`` is one for each processor, 0 is none.
    ``buffer_size=None``
        Bytes in one block on its way to the store, a hint: clamped to 64 KiB ... 64 MiB and rounded up to what the
        store needs (a multiple of 4 KiB for O_DIRECT, 5 MiB for the parts of S3).  ``None`` is 4 MiB, on S3
        and Azure 8 MiB.
    ``in_flight=None``
        Blocks on their way at once, 1 to 1024; ``None`` is 8.  A writer holds at most
        ``buffer_size * (in_flight + 1)`` bytes, beside the memory of zstd.
    ``durability='full'``
        Files: ``'full'`` makes data and name survive a loss of power, ``'data'`` the data only (the old file may be
        back), ``'none'`` neither.
    ``direct=None``
        Files: ``True`` writes with O_DIRECT where the file system offers it, ``False`` through the page cache.
        ``None`` is what the URI or the function says: ``direct`` is True; ``file`` begins in the page cache, and a file
        that is to last (``durability`` other than ``'none'``) goes on with O_DIRECT from the first block that begins at
        16 MiB or later, which is faster than to have all of it written at the end.
    ``require_direct=False``
        ``True`` makes it an error when O_DIRECT is not available, as anywhere but in files.
    ``create_parents=True``
        Files: ``False`` makes it an error when the folder is missing.
    ``content_type=None``
        S3 and Azure: the media type that is kept with the object, as ``'application/octet-stream'``; ``None`` is the
        store's default.
    ``verify=None``
        S3 and Azure: what the store is asked after it has acknowledged the object: ``'size'``, ``'checksum'`` (that
        too, where the store keeps one; not on Azure) or ``'none'``.  ``None`` is ``verify`` of `configure_s3` or
        `configure_azure` for a stream, and ``'none'`` for `put` of what fits into one request.
    ``timeout=300.0``
        Seconds without any progress of the device after which a call fails; not for files with
        ``durability='none'`` that go through the page cache.

    Raises InvalidInputError for a value out of range, TypeError for one of the wrong type.
    """

    compression: str | None = None
    level: int = lib.S3DLIO_ZSTD_LEVEL_DEFAULT
    threads: int | None = None
    buffer_size: int | None = None
    in_flight: int | None = None
    durability: str = "full"
    direct: bool | None = None
    require_direct: bool = False
    create_parents: bool = True
    content_type: str | None = None
    verify: str | None = None
    timeout: float = 300.0

    def __post_init__(self) -> None:
        _one_of("compression", self.compression, (None, "zstd"))
        _one_of("durability", self.durability, DURABILITIES)
        _one_of("verify", self.verify, (None, "none", "size", "checksum"))
        _whole("level", self.level, lib.S3DLIO_ZSTD_LEVEL_MIN, lib.S3DLIO_ZSTD_LEVEL_MAX)
        if self.threads is not None:
            _whole("threads", self.threads, 0, 256)
        if self.in_flight is not None:
            _whole("in_flight", self.in_flight, 1, 1024)
        if self.buffer_size is not None:
            _whole("buffer_size", self.buffer_size, 1, None)
        for name in ("require_direct", "create_parents"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.direct is not None and not isinstance(self.direct, bool):
            raise TypeError(f"direct must be True, False or None, not {self.direct!r}")
        if self.content_type is not None and not isinstance(self.content_type, str):
            raise TypeError(f"content_type must be a str or None, not {self.content_type!r}")
        if self.content_type is not None and not _MEDIA_TYPE.fullmatch(self.content_type):
            raise InvalidInputError(f"content_type must be like 'application/json', not {self.content_type!r}")
        if self.require_direct and self.direct is False:
            raise InvalidInputError("require_direct=True and direct=False contradict each other")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, (int, float)):
            raise TypeError(f"timeout must be a number of seconds, not {self.timeout!r}")
        if not 0.001 <= self.timeout <= 1_000_000:
            raise InvalidInputError(f"timeout must be 0.001 to 1000000 seconds, not {self.timeout!r}")

    # The reference's builder changes its object; ours also returns it.  Both `options.with_x(...)` alone and
    # `options = options.with_x(...)` must work: losing the first would silently store something else.
    def _with(self, **changes: Any) -> WriterOptions:
        checked = replace(self, **changes)
        for name in changes:
            object.__setattr__(self, name, getattr(checked, name))
        return self

    def with_compression(self, compression: str | None, level: int = lib.S3DLIO_ZSTD_LEVEL_DEFAULT) -> WriterOptions:
        """Compresses with ``'zstd'`` at ``level`` 1 to 22; ``None`` stores the bytes as they come.  Returns self."""
        return self._with(compression=compression, level=level)

    def with_buffer_size(self, size: int) -> WriterOptions:
        """Hints at the block size in bytes, any value above 0: clamped to 64 KiB ... 64 MiB.  Returns self."""
        return self._with(buffer_size=size)

    def with_durability(self, durability: str) -> WriterOptions:
        """``'none'``, ``'data'`` or ``'full'``, see the class.  Returns self."""
        return self._with(durability=durability)

    def with_direct(self, direct: bool = True, *, require: bool = False) -> WriterOptions:
        """Writes files with O_DIRECT; with ``require`` it is an error where that is not to be had.  Returns self."""
        return self._with(direct=direct, require_direct=require)

    def snapshot(self) -> WriterOptions:
        """A copy that later calls of the ``with_`` functions leave alone."""
        return replace(self)

    def block_size(self) -> int:
        """``buffer_size`` as it is used, or 0 for the default."""
        if self.buffer_size is None:
            return 0
        return min(max(self.buffer_size, MIN_BLOCK_SIZE), MAX_BLOCK_SIZE)

    def stored_name(self, name: str) -> str:
        """The name under which an object of this name is stored: ``.zst`` tells that it is compressed.  What names a
        folder stays one, for the store to refuse."""
        if self.compression is None or name.endswith(".zst") or name.rpartition("/")[2] in ("", ".", ".."):
            return name
        return name + ".zst"


_NAMES = tuple(field.name for field in fields(WriterOptions))


def writer_options(options: WriterOptions | None, settings: dict[str, Any]) -> WriterOptions:
    """The options of a call that takes an object or keywords.  The caller leaves them as they are."""
    if options is None:
        if unknown := [name for name in settings if name not in _NAMES]:
            raise TypeError(f"there is no setting {unknown[0]!r}; there are {', '.join(_NAMES)}")
        try:
            return _from_keywords(**settings)
        except TypeError:  # also for a value that cannot be kept
            return WriterOptions(**settings)
    if settings:
        raise TypeError("pass either an options object or keywords, not both")
    if not isinstance(options, WriterOptions):
        raise TypeError(f"options must be WriterOptions, not {type(options).__name__}")
    return options


def check_offered(options: WriterOptions, uri: Uri) -> None:
    """Whether the store has what must not be missing."""
    if options.require_direct and uri.scheme not in ("file", "direct"):
        text = f"open {uri}: only files can be written with O_DIRECT, and require_direct asks for it"
        raise UnsupportedError(text, operation="open", uri=str(uri))


# Checking them takes longer than to store a small object.
@lru_cache(64, typed=True)
def _from_keywords(**settings: Any) -> WriterOptions:
    return WriterOptions(**settings)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    # What is neither a text nor None may compare in ways of its own, as arrays do.
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def whole_number(name: str, value: Any) -> int:
    """The value of an argument, which may be any integer, as numpy's."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < low or (high is not None and value > high):
        allowed = f"{low} to {high}" if high is not None else f"at least {low}"
        raise InvalidInputError(f"{name} must be {allowed}, not {value}")
