"""What callers give to save and to load, checked before anything is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from s3dlio._errors import InvalidInputError
from s3dlio._native import ffi, pointer
from s3dlio._options import whole_number

if TYPE_CHECKING:
    from typing import BinaryIO

    from typing_extensions import Buffer

    Data = Buffer | Iterable[Buffer] | BinaryIO

# Bytes that are taken from a file object at once.
_STEP = 4 << 20

# Of a buffer.
_PART = 64 << 20


def chunks(data: Data) -> Iterator[Buffer]:
    """The parts of what is to be saved; of a large buffer so many that somebody can be told of the progress."""
    read = getattr(data, "readinto", None) or getattr(data, "read", None)
    if read is not None:
        yield from _chunks_of_file(data, read)
        return
    try:
        whole = pointer(data)  # type: ignore[arg-type]  # if it is no buffer it says so
    except TypeError:
        if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
            what = type(data).__name__
            raise TypeError(f"a buffer, a binary file object or an iterable of buffers is needed, not {what}") from None
        yield from data
    else:
        view = memoryview(ffi.buffer(whole))
        for start in range(0, len(view), _PART):
            yield view[start : start + _PART]


def _chunks_of_file(data: Any, read: Callable[..., Any]) -> Iterator[Buffer]:
    if hasattr(data, "readinto"):
        room = memoryview(bytearray(_STEP))
        while count := read(room):
            yield room[:count]
    else:
        while chunk := read(_STEP):
            yield chunk


def count_of(name: str, value: int) -> int:
    number = whole_number(name, value)
    if not 0 <= number < 1 << 63:
        raise InvalidInputError(f"{name} must not be negative, and is {value}")
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


def either(name: str, value: Any, other_name: str, other: Any, missing: Any = ...) -> Any:
    """An argument that has two names."""
    if value is not None and other is not None:
        raise TypeError(f"{name} and {other_name} are the same: give one of them")
    found = other if value is None else value
    if found is None and missing is ...:
        raise TypeError(f"save() needs {name}")
    return found
