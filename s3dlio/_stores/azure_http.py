"""How the SDK's requests go over the network: for as long as it moves bytes, and until the transfer is broken off.

The timeout of a socket is for all that one call is to send, and begins anew with each byte that one receives.  So it is
a short one here, after each of which there is a look at what holds.
"""

from __future__ import annotations

import functools
import http.client
import io
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import requests
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import RequestsTransport
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from s3dlio import _cancel

# The signature of a SAS is part of the target, which urllib3 shows.
_SIGNATURE = re.compile(r"(?i)\bsig=[^&\s\"']+")


def _without_signature(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_SIGNATURE.sub("sig=…", each) if isinstance(each, str) else each for each in values)


def _redact(error: BaseException) -> None:
    """Takes the signature out of the texts of an error, and of those behind it."""
    todo: list[Any] = [error]
    seen = set()
    while todo:
        each = todo.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            each.args = _without_signature(each.args)
            facts = vars(each)
            facts.update(zip(facts, _without_signature(tuple(facts.values())), strict=True))
            todo += [*each.args, each.__cause__, each.__context__]


def _redacted(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = _without_signature(record.args)
    return True


# A filter is for what its own logger is told, not for those below it.
for _name in ("connection", "connectionpool", "poolmanager", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(_redacted)

# That a read was broken off is an error, or was wanted; without this each would be a line on standard error.
logging.getLogger("azure.core.pipeline.transport._requests_basic").addFilter(
    lambda record: record.msg != "Unable to stream download."
)

# Bytes to send or receive in one call; of smaller ones Python has more to do than with the SDK's own transport.
PIECE = 1 << 20
_SMALL_PIECE = 64 << 10
MAX_CONNECTIONS = 128
# Seconds between two looks at a connection on which nothing comes and goes.
_LOOK = 0.2


class OverError(Exception):
    """The transfer is broken off.  No OSError, which urllib3 would take for its own."""


class CutError(AzureError):
    """An answer ended before its end.  None of the errors that the SDK repeats by itself, with a second's sleep."""


class Watch:
    """What holds for the requests of a thread, and what came of them."""

    def __init__(self, deadline: float, stall_timeout: float, is_over: Callable[[], bool]) -> None:
        self._deadline = deadline
        self._stall_timeout = stall_timeout
        self._is_over = is_over
        self._answer: requests.Response | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.has_sent = False
        # Whether the work of the thread is to be broken off.
        self.is_cancelled = False

    def look(self) -> None:
        if self.is_cancelled or time.monotonic() > self._deadline or self._is_over():
            raise OverError

    def at_most(self, seconds: float) -> float:
        """So many seconds, or what is left until the deadline."""
        self.look()
        return max(0.001, min(seconds, self._deadline - time.monotonic()))

    def through(self, sock: Any, step: Callable[[], int]) -> int:
        """Does what sends or receives on a socket.  Raises TimeoutError when nothing moves for too long, in either
        direction."""
        if not isinstance(sock, socket.socket):  # TLS within the TLS of a proxy, which would lose what it has begun
            sock.settimeout(self.at_most(self._stall_timeout))
            return step()
        sock.settimeout(min(_LOOK, self._stall_timeout))
        moved, since = b"", time.monotonic()
        while True:
            self.look()
            try:
                return step()
            except TimeoutError:
                before, moved = moved, _moved(sock)
                if moved != before:
                    since = time.monotonic()
                elif time.monotonic() - since >= self._stall_timeout:
                    raise TimeoutError(f"timed out: nothing moved for {self._stall_timeout:g} s") from None

    def uses(self, own: socket.socket | None) -> None:
        """Which socket is the thread's own at the moment."""
        with self._lock:
            self._socket = own
        if self.is_cancelled:
            raise OverError

    def break_off(self) -> None:
        """From another thread: ends the wait for the network."""
        with self._lock:
            self.is_cancelled = True
            if self._socket is not None:
                own: Any = getattr(self._socket, "socket", self._socket)  # of TLS within the TLS of a proxy
                with suppress(OSError):
                    socket.socket.shutdown(own, socket.SHUT_RDWR)  # TLS or not

    def keep(self, answer: requests.Response) -> None:
        self._answer = answer

    def close(self) -> None:
        """Closes the connection of an answer that could not be read; the SDK leaves that to the garbage collector."""
        if self._answer is not None:
            self._answer.raw.close()


def _moved(sock: socket.socket) -> bytes:
    """What changes with each byte that the other side has acknowledged or sent, also between two of TLS's records:
    tcpi_bytes_acked and tcpi_bytes_received of tcp_info (linux/tcp.h)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)[120:]


_now = threading.local()


@contextmanager
def watched(deadline: float, stall_timeout: float, is_over: Callable[[], bool]) -> Iterator[Watch]:
    """Within it, transfers end with OverError after ``deadline``, a time of the monotonic clock, or when ``is_over``
    says so; what breaks off the thread breaks off them as well."""
    _now.watch = watch = Watch(deadline, stall_timeout, is_over)
    cancellation = _cancel.current()
    try:
        with nullcontext() if cancellation is None else cancellation.waking(watch.break_off):
            yield watch
    except BaseException:
        watch.close()
        if watch.is_cancelled:
            _cancel.check()
        raise
    finally:
        del _now.watch


def _watch() -> Watch:
    found: Watch | None = getattr(_now, "watch", None)
    return found or Watch(math.inf, math.inf, lambda: False)


class _Body:
    """Bytes as a file object whose pieces are sent one by one, without a copy."""

    def __init__(self, data: Any) -> None:
        self._data = memoryview(data)
        self._watch = _watch()
        self._done = 0

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[memoryview]:
        while piece := self.read():
            yield piece

    def read(self, size: int = -1) -> memoryview:
        """The next piece; urllib3 asks for smaller ones than there need be."""
        self._watch.look()
        piece = self._data[self._done : self._done + PIECE]
        self._done += len(piece)
        return piece


class _Session(requests.Session):
    def request(self, method: Any, url: Any, **settings: Any) -> requests.Response:  # type: ignore[override]  # passed on
        watch = _watch()
        watch.look()
        watch.close()  # that of an attempt of the SDK's own
        watch.has_sent = True
        data = settings.get("data")
        if isinstance(data, (bytes, memoryview)) and len(data) > PIECE:
            settings["data"] = _Body(data)
        try:
            answer = super().request(method, url, **settings)
        except Exception as error:
            _redact(error)
            raise
        whole = answer.raw.stream

        def stream(amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
            # As it is stored: a Content-Encoding is the business of who stored it.
            try:
                yield from whole(amount, decode_content=False)
            except HTTPError as error:
                raise CutError(str(error)) from error

        watch.keep(answer)
        answer.raw.stream = stream
        return answer


class _Incoming(io.RawIOBase):
    """What comes on a socket, for as long as it is wanted; ``raw`` keeps that open."""

    def __init__(self, sock: Any, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int | None:
        return _watch().through(self._sock, lambda: self._sock.recv_into(room))

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *arguments: Any, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        self.fp = io.BufferedReader(_Incoming(sock, self.fp.detach()))


class _Connection(HTTPConnection):
    """One whose every wait another thread can end."""

    response_class = _Response
    # The same connection by a descriptor of its own: until TLS stands its socket has none.
    _twin: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        """As urllib3's, where nobody gets at the socket before it is connected."""
        watch = _watch()
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        failure: HTTPError | None = None
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            self._twin = sock.dup()
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                timeout = self.timeout or math.inf
                sock.settimeout(watch.at_most(timeout))
                watch.uses(self._twin)
                sock.connect(address)
                sock.settimeout(watch.at_most(timeout))  # for what TLS has to say
                return sock
            except BaseException as error:
                sock.close()
                self._twin.close()
                if isinstance(error, TimeoutError):
                    watch.look()
                    failure = ConnectTimeoutError(self, f"Connection to {self.host} timed out: no answer")
                elif isinstance(error, OSError):
                    failure = NewConnectionError(self, f"Failed to establish a new connection: {error}")
                else:
                    raise
        assert failure is not None
        raise failure

    def connect(self) -> None:
        try:
            super().connect()
        finally:
            if self._twin is not None:
                self._twin.close()
        _watch().uses(self.sock)

    def request(self, *arguments: Any, **settings: Any) -> None:
        _watch().uses(self.sock)
        super().request(*arguments, **settings)

    def send(self, data: Any) -> None:
        """As urllib3's, whose timeout is that for the connection, and for all of the data."""
        if self.sock is None:
            self.connect()
        rest = memoryview(data)
        # Elsewhere the timeout is for all that one call sends, see `Watch.through`.
        size = PIECE if isinstance(self.sock, socket.socket) else _SMALL_PIECE
        while rest:
            rest = rest[_watch().through(self.sock, functools.partial(self.sock.send, rest[:size])) :]


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection

    def _put_conn(self, connection: Any) -> None:
        with suppress(OverError):
            _watch().uses(None)  # another thread may take it
        super()._put_conn(connection)


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection

    def _put_conn(self, connection: Any) -> None:
        with suppress(OverError):
            _watch().uses(None)
        super()._put_conn(connection)


_POOLS = {"http": _Pool, "https": _TlsPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        super().init_poolmanager(*arguments, **settings)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **settings: Any) -> PoolManager:
        manager: PoolManager = super().proxy_manager_for(proxy, **settings)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def close(self) -> None:
        # urllib3 leaves idle connections to the garbage collector, and its log record of a bad answer holds all of them
        # for as long as somebody keeps it.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118  it has no __iter__
                if (pool := manager.pools.get(key)) is not None:
                    pool.close()
        super().close()


def new_transport(connect_timeout: float, stall_timeout: float) -> RequestsTransport:
    session = _Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_maxsize=MAX_CONNECTIONS, max_retries=0))
    # What the client is told of timeouts does not reach a transport that it is given.
    return RequestsTransport(
        session=session,
        connection_timeout=connect_timeout,
        read_timeout=stall_timeout,
        connection_data_block_size=PIECE,
    )
