"""HTTP/1.1 through awscrt: the connections to a host, and one exchange of a request and its answer over one of them.

awscrt's event loops do the work; all callbacks come from their threads.  A body goes out straight from the caller's
memory, and an answer's comes straight into it, in pieces of at most 16 KiB: so what moves is seen to move, and nothing
is held twice.
"""

from __future__ import annotations

import collections
import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import awscrt.auth
import awscrt.http
import awscrt.io

from s3dlio import _errors
from s3dlio._native import ffi
from s3dlio._stores import s3_clock

# Longer than any list of 1,000 keys of 1,024 bytes, each byte as %XX.
_MAX_ANSWER = 16 << 20

# As many as need not wait for each other; get_many() has 64 on their way.
_MAX_CONNECTIONS = 128

# What a socket is given or asked for at once.
PIECE = 256 << 10

# From here on a body is worth a thread while it is on its way.
_LONG = 1 << 20

# Exchanges that are begun within each other.
_MAX_DEPTH = 16

# S3 closes a connection that is idle for longer than some 20 s; a request that meets that has to be repeated.
MAX_IDLE = 10.0


@dataclass(frozen=True)
class Answer:
    """What a server said: header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class DeclinedError(Exception):
    """Raised by a function that was to say where an answer goes: there is no place for it."""


@dataclass
class Call:
    """What to ask.  ``data`` is the body, ``into`` (a pointer) where the answer's goes, if not into `Answer`.
    ``make_room`` finds that place when it is told the answer's headers, or raises `DeclinedError`.  ``about`` is what
    errors name, if not the bucket and key."""

    operation: str
    method: str
    bucket: str
    key: str = ""
    query: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    data: memoryview | bytes | None = None
    into: Any = None
    make_room: Callable[[dict[str, str]], Any] | None = None
    accept: tuple[int, ...] = (200, 204, 206)
    about: str | None = None

    def is_long(self) -> bool:
        """Whether a body is worth a thread of its own while it is on its way, see s3_bulk.py."""
        sent = self.data if self.method == "PUT" else None
        return max(len(sent or b""), len(self.into) if self.into is not None else 0) >= _LONG

    @property
    def uri(self) -> str:
        return self.about or f"s3://{self.bucket}/{self.key}"

    @property
    def what(self) -> str:
        return f"{self.operation} {self.uri}"


class _Body:
    """A request's body, which can be taken away while awscrt still holds on to it."""

    def __init__(self, data: memoryview, moved: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._data: memoryview | None = data
        self.size = len(data)
        self._position = 0
        self._moved = moved

    # What awscrt asks for first; it only wants to see read().
    def readinto1(self, target: memoryview) -> int:
        size = len(target)
        with self._lock:
            if self._data is None:
                return 0  # broken off: too few bytes, so that nothing is stored
            part = self._data[self._position : self._position + size]
            size = len(part)
            target[:size] = part
        self._position += size
        self._moved()
        return size

    def read(self, size: int = -1) -> bytes:
        raise NotImplementedError

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        self._position = base[whence] + offset
        return self._position

    def send_by(self, send: Callable[[memoryview], int]) -> bool:
        """Piece by piece, for whoever sends by himself.  False when ``send`` sent nothing, and so wants no more."""
        assert self._data is not None
        while self._position < self.size:
            count = send(self._data[self._position : self._position + PIECE])
            if count == 0:
                return False
            self._position += count
            self._moved()
        return True

    def take_away(self) -> None:
        with self._lock:
            self._data = None
        self._moved = lambda: None


class AnyPool(Protocol):
    """Where an exchange gets its connection."""

    host_header: str

    def lend(self, exchange: Any) -> None:
        """Gives the exchange a connection, now or when there is one."""

    def take_back(self, connection: Any, is_whole: bool) -> None:
        """The end of a loan: ``is_whole`` if the connection can serve another exchange."""

    def close(self) -> None:
        """Lets go of all that are idle, and of the others when they come back."""


class Exchange:
    """A request and its answer.  ``on_done`` is told the end, an answer or an error, unless it was taken away."""

    def __init__(
        self,
        pool: AnyPool,
        call: Call,
        path: str,
        signing: Callable[[], Any],
        on_done: Callable[[Exchange, Answer | Exception], None],
    ) -> None:
        # When a byte last moved.  While it waits for its turn none can.
        self.moved_at = math.inf
        # Whether its connection had served another before, and may have been closed by the server meanwhile.
        self.was_used = False
        self.is_gone = False
        self._lock = threading.Lock()
        self._pool = pool
        self._call = call
        self._path = path
        self._signing = signing
        self._on_done = on_done
        self._body = None if call.data is None else _Body(memoryview(call.data), self.moved)
        self._into = call.into
        self._received = 0
        self._content = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._connection: Any = None
        self._is_sent = False
        self._own_error: Exception | None = None

    def begin(self) -> None:
        self._pool.lend(self)

    def take_away(self, then: Callable[[], None]) -> None:
        """Ends it, without waiting.  ``then`` is called, here or from another thread, once no byte of the caller's
        memory is read or written any more; for awscrt, whatever it still holds, that is now."""
        with self._lock:
            self.is_gone = True
            self._into = None
            if self._connection is not None and self._is_sent:
                # Half an exchange leaves nothing to go on with.  Under the lock, as it may be given back just now, and
                # then serve another.
                self._connection.close()
        if self._body is not None:
            self._body.take_away()
        then()

    def moved(self) -> None:
        self.moved_at = time.monotonic()

    def connected(self, connection: Any, was_used: bool) -> None:
        """For the pool: this connection is its own until it gives it back."""
        self._connection, self.was_used = connection, was_used
        try:
            self.moved()
            request = self._request()
            signing = self._signing()
            if signing is None:
                self._send(request)
            else:
                awscrt.auth.aws_sign_request(request, signing).add_done_callback(self._signed)
        except Exception as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """It could not even be sent."""
        self._give_back(is_whole=not self._is_sent)
        self._end(error)

    def _request(self) -> Any:
        call = self._call
        headers = awscrt.http.HttpHeaders([("host", self._pool.host_header), *call.headers])
        if self._body is not None:
            headers.add("content-length", str(self._body.size))
        elif call.method in ("PUT", "POST"):
            headers.add("content-length", "0")
        target = self._path + ("?" + call.query if call.query else "")
        return awscrt.http.HttpRequest(call.method, target, headers, self._body)

    def _signed(self, future: Any) -> None:
        try:
            self._send(future.result())
        except Exception as error:
            self.failed(error)

    def _send(self, request: Any) -> None:
        with self._lock:
            self._is_sent = not self.is_gone
        if not self._is_sent:
            self._give_back(is_whole=True)
            return
        stream = self._connection.request(request, self._on_response, self._on_body)
        stream.completion_future.add_done_callback(self._completed)
        stream.activate()

    def _on_response(self, status_code: int, headers: Iterable[tuple[str, str]], **_: Any) -> None:
        self.moved()
        self._status = status_code
        self._headers = {name.lower(): value for name, value in headers}
        call = self._call
        try:
            if call.make_room is not None and status_code in call.accept:
                self._into = call.make_room(self._headers)
            elif self._into is None and call.method != "HEAD" and self._announced(0) > _MAX_ANSWER:
                raise self._error("an answer that is too long")
        except Exception as error:
            self._refuse(error)

    def _on_body(self, chunk: bytes, **_: Any) -> None:
        self.moved_at = time.monotonic()
        if self._own_error is not None:
            return
        try:
            with self._lock:
                self._take(chunk)
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        """Breaks off an answer that is not wanted; awscrt would print an exception of its callbacks."""
        self._own_error = error.with_traceback(None)  # whose frames lead here
        self._connection.close()

    def _take(self, chunk: bytes) -> None:
        size = len(chunk)
        if self.is_gone:
            raise _errors.ClosedError("the request was broken off")
        if self._into is None or self._status not in self._call.accept:
            if self._received + size > _MAX_ANSWER:
                raise self._error("an answer that is too long")
            self._content += chunk
        else:
            if self._received + size > len(self._into):
                raise self._error("more bytes than were asked for")
            ffi.memmove(self._into + self._received, chunk, size)
        self._received += size

    def _error(self, how: str) -> _errors.StorageError:
        return _errors.StorageError(f"{self._call.what}: {how}", operation=self._call.operation, uri=self._call.uri)

    def _completed(self, future: Any) -> None:
        error = future.exception()
        self._finish(error, is_whole=error is None and self._own_error is None)

    def _finish(self, error: Exception | None, is_whole: bool) -> None:
        """The end: ``is_whole`` if the connection can serve another."""
        self._give_back(is_whole)
        if self._own_error is not None:
            self._end(self._own_error)
        elif error is not None and not (self._status >= 400 and self._received == self._announced(-1)):
            # A server that refuses a body may close without having read it, once it has said why.
            self._end(error)
        elif self._call.method != "HEAD" and self._received != self._announced(self._received):
            self._end(self._error(f"the answer ended after {self._received} of {self._announced(0)} bytes"))
        else:
            self._end(Answer(self._status, self._headers, bytes(self._content)))

    def _announced(self, otherwise: int) -> int:
        return int(self._headers.get("content-length", otherwise))

    def _give_back(self, is_whole: bool) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.take_back(connection, is_whole)

    def _end(self, outcome: Answer | Exception) -> None:
        if not self.is_gone:
            self._on_done(self, outcome)


_thread = threading.local()


def _keep_thread_state() -> None:
    """Makes callbacks on this thread of awscrt cheaper.

    Python gives a thread of somebody else a new state for each callback, with a stack that is mapped and unmapped: a
    third of the processor time of a transfer.  One more PyGILState_Ensure() than there are releases keeps the state,
    which is a few KiB for each event loop.
    """
    if not hasattr(_thread, "is_kept"):
        _thread.is_kept = True
        ctypes.pythonapi.PyGILState_Ensure()


class Pool:
    """The connections to one host: made when needed, and kept for a while."""

    def __init__(self, host: str, port: int, bootstrap: Any, tls: Any, connect_timeout: float) -> None:
        is_default = port == (443 if tls is not None else 80)
        shown = f"[{host}]" if ":" in host else host
        self.host_header = shown if is_default else f"{shown}:{port}"
        self._host = host
        self._port = port
        self._bootstrap = bootstrap
        self._tls = tls
        self._options = awscrt.io.SocketOptions()
        self._options.connect_timeout_ms = max(1, int(connect_timeout * 1000))
        self._options.keep_alive = True
        self._lock = threading.Lock()
        self._idle: list[tuple[Any, float]] = []
        self._waiting: collections.deque[Exchange] = collections.deque()
        self._count = 0
        self._is_closed = False

    def lend(self, exchange: Exchange) -> None:
        now = time.monotonic()
        found, stale = None, []
        with self._lock:
            while self._idle and found is None:
                connection, since = self._idle.pop()  # the last that was used, so that others grow old
                if now - since < MAX_IDLE and connection.is_open():
                    found = connection
                else:
                    stale.append(connection)
                    self._count -= 1
            if found is None:
                if self._count >= _MAX_CONNECTIONS:
                    self._waiting.append(exchange)
                    return
                self._count += 1
        for connection in stale:
            connection.close()
        self._serve(exchange, found)

    def _serve(self, exchange: Exchange, connection: Any) -> None:
        """Gives it this connection, or a new one.  One that fails at once makes room for the next, which may fail as
        well: so that many do not end in a recursion, another thread goes on now and then."""
        depth = getattr(_thread, "depth", 0)
        if depth == _MAX_DEPTH:
            s3_clock.after(0.0, lambda: self._serve(exchange, connection))
            return
        _thread.depth = depth + 1
        try:
            if connection is not None:
                exchange.connected(connection, was_used=True)
            else:
                self._connect(exchange)
        finally:
            _thread.depth = depth

    def _connect(self, exchange: Exchange) -> None:
        exchange.moved()

        def done(future: Any) -> None:
            _keep_thread_state()
            error = future.exception()
            if error is None:
                exchange.connected(future.result(), was_used=False)
            else:
                self._lost()
                exchange.failed(error)

        try:
            tls = None
            if self._tls is not None:
                tls = self._tls.new_connection_options()
                tls.set_server_name(self._host)
            future = awscrt.http.HttpClientConnection.new(self._host, self._port, self._bootstrap, self._options, tls)
        except Exception as error:
            self._lost()
            exchange.failed(error)
            return
        future.add_done_callback(done)

    def take_back(self, connection: Any, is_whole: bool) -> None:
        if not is_whole or self._is_closed or not connection.is_open():
            connection.close()
            self._lost()
            return
        with self._lock:
            following = self._next()
            if following is None:
                self._idle.append((connection, time.monotonic()))
        if following is not None:
            self._serve(following, connection)

    def _lost(self) -> None:
        """There is one connection less: who waits may have another."""
        with self._lock:
            following = self._next()
            if following is None:
                self._count -= 1
        if following is not None:
            self._serve(following, None)

    def _next(self) -> Exchange | None:
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.is_gone:
                return exchange
        return None

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()
