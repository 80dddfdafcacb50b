"""The head and the framing of an answer in HTTP/1.1 (RFC 9112), from bytes: no sockets here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# The length of a body that ends with the connection.
UNTIL_END = -1

# Of a head.  S3 keeps 2 KB of a user's own headers.
_MAX_HEAD = 64 << 10

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: .*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


@dataclass(frozen=True)
class Head:
    status: int
    headers: list[tuple[str, str]]
    keeps_alive: bool
    # Bytes of the body; None for chunks.
    length: int | None


def parse_head(come: bytearray, takes: bool = True) -> Head | None:
    """Takes a head from the beginning of what has come, or only looks at it; None if it is not all there yet.

    Raises ConnectionError for what is none."""
    end = come.find(b"\r\n\r\n")
    if end < 0 and len(come) <= _MAX_HEAD:
        return None
    if not 0 <= end <= _MAX_HEAD:
        raise ConnectionError("the answer makes no sense: a head without an end")
    lines = bytes(come[:end]).split(b"\r\n")
    if takes:
        del come[: end + 4]
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        raise ConnectionError("the answer makes no sense: it is not HTTP/1.1")
    headers = [_header(line) for line in lines[1:]]
    status = int(match[2])
    options = {option.strip().lower() for value in _values(headers, "connection") for option in value.split(",")}
    return Head(status, headers, match[1] == b"1" and "close" not in options, _length(status, headers))


def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not _NAME.fullmatch(name):
        raise ConnectionError("the answer makes no sense: a line of its head has no name")
    return name.decode().lower(), value.strip().decode("latin-1")


def _values(headers: Iterable[tuple[str, str]], wanted: str) -> set[str]:
    return {value for name, value in headers if name == wanted}


def _length(status: int, headers: list[tuple[str, str]]) -> int | None:
    """RFC 9112, section 6.3."""
    if status < 200 or status in (204, 304):
        return 0
    lengths = _values(headers, "content-length")
    codings = {value.lower() for value in _values(headers, "transfer-encoding")}
    if codings:
        if lengths or codings != {"chunked"}:
            raise ConnectionError("the answer makes no sense: it says twice how long it is")
        return None
    if not lengths:
        return UNTIL_END
    text = lengths.pop()
    if lengths or not re.fullmatch("[0-9]{1,18}", text):
        raise ConnectionError("the answer makes no sense: it does not say how long it is")
    return int(text)


class Framing:
    """How much of a body is still to come.  ``line`` gives the next line of what has come."""

    def __init__(self, head: Head, line: Callable[[], bytes]) -> None:
        self._line = line
        self._is_chunked = head.length is None
        # Of a body that ends with the connection, nothing is said.
        self._left = head.length if head.length is not None else 0
        self.is_over = self._left == 0 and not self._is_chunked
        if self._is_chunked:
            self._next_chunk()

    @property
    def room(self) -> int:
        """So many bytes at most come now."""
        return self._left if self._left >= 0 else 1 << 30

    def took(self, count: int) -> None:
        if self._left < 0:
            return
        self._left -= count
        if self._left > 0:
            return
        if not self._is_chunked:
            self.is_over = True
        elif self._line():
            raise ConnectionError("the answer makes no sense: a chunk is longer than it says")
        else:
            self._next_chunk()

    def _next_chunk(self) -> None:
        match = _CHUNK.fullmatch(self._line())
        if match is None:
            raise ConnectionError("the answer makes no sense: a chunk without a size")
        self._left = int(match[1], 16)
        if self._left == 0:
            while self._line():  # what may follow
                pass
            self.is_over = True
