"""What callers give to save and to load, checked before anything is stored."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from s3dlio._errors import InvalidInputError
from s3dlio._native import ffi, pointer
from s3dlio._options import whole_number
from s3dlio.checkpoint.layout import check_depth

if TYPE_CHECKING:
    from typing import BinaryIO

    from typing_extensions import Buffer

    # (What arrays of NumPy are to a type checker depends on the version of Python.)
    Data = Buffer | Iterable[Any] | BinaryIO

# Bytes that are taken from a file object at once.
_STEP = 4 << 20

# Of a buffer.
_PART = 64 << 20


def chunks(data: Data) -> Iterator[Buffer]:
    """The parts of what is to be saved; of a large buffer so many that somebody can be told of the progress."""
    try:
        whole = pointer(data)  # type: ignore[arg-type]  # if it is no buffer it says so
    except TypeError:
        if hasattr(data, "numpy"):  # a tensor, whose items are tensors again
            raise
        whole = None
    if whole is not None:
        view = memoryview(ffi.buffer(whole))
        for start in range(0, len(view), _PART):
            yield view[start : start + _PART]
    elif hasattr(data, "read") and not _is_text(data):
        yield from _chunks_of_file(data)
    elif isinstance(data, Iterable) and not (isinstance(data, (str, Mapping)) or _is_text(data)):
        yield from data
    else:
        what = type(data).__name__
        hint = "; an object is written to a shard's stream, as by pickle.dump or torch.save"
        raise TypeError(f"a buffer, a binary file object or an iterable of buffers is needed, not {what}{hint}")


def _is_text(file: Any) -> bool:
    """Whether it is a file object of text, or one of tempfile around such."""
    return isinstance(file, io.TextIOBase) or isinstance(getattr(file, "file", None), io.TextIOBase)


def _chunks_of_file(file: Any) -> Iterator[Buffer]:
    fills = hasattr(file, "readinto")
    room = memoryview(bytearray(_STEP if fills else 0))
    is_empty = True
    while found := file.readinto(room) if fills else file.read(_STEP):
        is_empty = False
        yield room[:found] if fills else found
    if found is None:  # io.RawIOBase
        raise InvalidInputError(f"{file!r} has nothing to read at this moment, and does not block")
    if is_empty and hasattr(file, "seekable") and file.seekable() and file.tell() > 0:
        raise InvalidInputError(f"{file!r} is at its end, where it was written to: seek(0) goes back to its beginning")


def count_of(name: str, value: int) -> int:
    number = whole_number(name, value)
    if not 0 <= number < 1 << 63:
        what = "be negative" if number < 0 else "have more than 63 bits"
        raise InvalidInputError(f"{name} must not {what}, and is {value}")
    return number


def check_text(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")


def check_json(metadata: Mapping[str, Any] | None) -> None:
    """Before anything is stored."""
    if metadata is not None and not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        json.dumps(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"metadata cannot be stored as JSON: {error}") from None
    check_depth(metadata)


def either(name: str, value: Any, other_name: str, other: Any, missing: Any = ...) -> Any:
    """An argument that has two names."""
    if value is not None and other is not None:
        raise TypeError(f"{name} and {other_name} are the same: give one of them")
    found = other if value is None else value
    if found is None and missing is ...:
        raise TypeError(f"save() needs {name}")
    return found
