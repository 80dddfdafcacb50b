"""How the SDK's requests go over the network: bodies in pieces, between which a transfer can be broken off.

The timeout of a socket is for all that one call is to send.  A block in one call would have to be through within it,
however slow the network; so would nobody see, until it has ended, that it is no longer wanted.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from azure.core.pipeline.transport import RequestsTransport
from requests.adapters import HTTPAdapter

# The signature of a SAS is part of the target, which urllib3 logs.
_SIGNATURE = re.compile(r"(?i)\bsig=[^&\s\"]+")


def _redacted(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(_SIGNATURE.sub("sig=…", each) if isinstance(each, str) else each for each in record.args)
    return True


logging.getLogger("urllib3.connectionpool").addFilter(_redacted)

PIECE = 256 << 10
MAX_CONNECTIONS = 128


class OverError(Exception):
    """The transfer is broken off.  No OSError, which urllib3 would take for its own."""


class _Watch(threading.local):
    """What holds for the requests of this thread."""

    deadline = float("inf")
    # Whether a request was sent.
    sent = False

    @staticmethod
    def is_over() -> bool:
        return False


_watch = _Watch()


@contextmanager
def watched(deadline: float, is_over: Callable[[], bool]) -> Iterator[_Watch]:
    """Within it, transfers end with OverError after ``deadline``, a time of the monotonic clock, or when ``is_over``
    says so."""
    _watch.deadline, _watch.sent = deadline, False
    _watch.is_over = is_over  # type: ignore[method-assign]
    try:
        yield _watch
    finally:
        _watch.__dict__.clear()


def _look() -> None:
    if time.monotonic() > _watch.deadline or _watch.is_over():
        raise OverError


class _Body:
    """Bytes as a file object whose pieces are sent one by one, without a copy."""

    def __init__(self, data: Any) -> None:
        self._data = memoryview(data)
        self._done = 0

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[memoryview]:
        while piece := self.read():
            yield piece

    def read(self, size: int = -1) -> memoryview:
        """The next piece; urllib3 asks for smaller ones than there need be."""
        _look()
        piece = self._data[self._done : self._done + PIECE]
        self._done += len(piece)
        return piece


class _Session(requests.Session):
    def request(self, method: Any, url: Any, **settings: Any) -> requests.Response:  # type: ignore[override]
        _look()
        _watch.sent = True
        data = settings.get("data")
        if isinstance(data, (bytes, memoryview)) and len(data) > PIECE:
            settings["data"] = _Body(data)
        answer = super().request(method, url, **settings)
        whole = answer.raw.stream

        def stream(amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
            # As it is stored: a Content-Encoding is the business of who stored it.
            for piece in whole(amount, decode_content=False):
                _look()
                yield piece

        answer.raw.stream = stream  # type: ignore[method-assign]
        return answer


def new_transport() -> RequestsTransport:
    session = _Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS, max_retries=0))
    return RequestsTransport(session=session, connection_data_block_size=PIECE)
