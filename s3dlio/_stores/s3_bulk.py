"""Long bodies to and from S3, over sockets of Python's own, each in a thread while it is busy.

awscrt cuts a body into pieces of 16 KiB and asks Python for each, in one thread for all connections.  A socket takes
and gives hundreds of KiB in one call, which lets the others run meanwhile: twice as fast, with half the processor time.
What is short stays with awscrt, which needs no thread to wait; signatures are always its work.
"""

from __future__ import annotations

import http.client
import queue
import select
import socket
import ssl
import threading
import time
from contextlib import suppress

import awscrt.auth

from s3dlio._native import ffi
from s3dlio._stores.s3_http import MAX_IDLE, PIECE, Exchange

# As many connections to a host, of all writers and readers.
_MAX_THREADS = 32
# Seconds for which a thread waits for more to do.
_MAX_REST = 2.0
# For credentials, which may have to be asked for.
_MAX_SIGNING = 60.0


class BulkExchange(Exchange):
    """As `Exchange`, done by a thread of the pool's from its beginning to its end."""

    _pool: BulkPool
    _connection: BulkConnection | None

    def take_away(self) -> None:
        """Ends it: the caller's memory is used no more on return."""
        self.is_gone = True
        connection = self._connection
        if connection is not None:
            connection.break_off(self)  # or this would wait for a byte to move
        with self._lock:
            self._into = None
        if self._body is not None:
            self._body.take_away()

    def serve(self) -> None:
        """In a thread of the pool's."""
        self.moved()
        is_whole = False
        try:
            connection, self.was_used = self._pool.connection(self)
            self._connection = connection
            head = self._head()
            with self._lock:
                self._is_sent = not self.is_gone
            if not self._is_sent:
                self._give_back(is_whole=True)
                return
            is_whole = self._transfer(connection, head)
        except Exception as error:
            # Bare: whoever keeps it would keep the frames, and in them the client.
            error.__context__ = None
            self._finish(error.with_traceback(None), is_whole=False)
        else:
            self._finish(None, is_whole=is_whole and self._own_error is None)

    def _head(self) -> bytes:
        request = self._request()
        signing = self._signing()
        if signing is not None:
            request = awscrt.auth.aws_sign_request(request, signing).result(_MAX_SIGNING)
        lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers)]
        return "\r\n".join([*lines, "", ""]).encode()

    def _transfer(self, connection: BulkConnection, head: bytes) -> bool:
        """Returns whether the connection can serve another."""
        refused: OSError | None = None
        is_sent = True
        try:
            connection.sock.sendall(head)
            if self._body is not None:
                is_sent = self._body.send_by(connection.send)
        except OSError as error:
            # A server that refuses a body may close without having read it, once it has said why.
            refused = error
        answer = http.client.HTTPResponse(connection.sock, method=self._call.method)
        try:
            answer.begin()
            self._on_response(answer.status, answer.getheaders())
            while self._own_error is None and self._receive(answer):
                self.moved()
        except (OSError, http.client.HTTPException):
            if refused is not None:
                raise refused from None
            raise
        finally:
            is_whole = answer.isclosed() and not answer.will_close
            answer.close()
        return is_whole and is_sent and refused is None and self._received == self._announced(self._received)

    def _receive(self, answer: http.client.HTTPResponse) -> bool:
        """Takes a piece of the answer's body; False at its end."""
        if self._into is None or self._status not in self._call.accept:
            chunk = answer.read(PIECE)
            self._on_body(chunk)
            return bool(chunk)
        with self._lock:
            if self._into is None:
                return False  # taken away
            room = len(self._into) - self._received
            if room > 0:
                count = answer.readinto(ffi.buffer(self._into + self._received, min(PIECE, room)))
                self._received += count
                return count > 0
        self._on_body(answer.read(1))  # there should be none
        return False


class BulkConnection:
    """A socket, and whose it is for the moment."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.since = 0.0
        self._is_plain = not isinstance(sock, ssl.SSLSocket)
        self._poll = select.poll()
        self._poll.register(sock)
        self._lock = threading.Lock()
        self._owner: BulkExchange | None = None

    def lend(self, owner: BulkExchange | None) -> None:
        with self._lock:
            self._owner = owner

    def break_off(self, owner: BulkExchange) -> None:
        """Ends what the owner waits for; does nothing when it has given the connection back."""
        with self._lock:
            if self._owner is owner:
                self._shut_down()

    def send(self, piece: memoryview) -> int:
        """Sends some of it, or nothing when the server has answered already: it may read no more."""
        if not self._is_plain:
            return self.sock.send(piece)  # what comes may be TLS's own
        while True:
            self._poll.modify(self.sock, select.POLLIN | select.POLLOUT)
            (_, events), *_ = self._poll.poll()
            if events & ~select.POLLOUT:
                return 0
            with suppress(BlockingIOError):  # the room was less than the kernel's least
                return self.sock.send(piece, socket.MSG_DONTWAIT)

    def is_open(self) -> bool:
        """Whether the server has neither closed it nor said what nobody has asked for."""
        self._poll.modify(self.sock, select.POLLIN)
        return not self._poll.poll(0)

    def close(self) -> None:
        """For the thread that uses it, or when none does: another one would be left with a descriptor that may be
        somebody else's by then."""
        self._shut_down()
        self.sock.close()

    def _shut_down(self) -> None:
        with suppress(OSError):
            # Of the connection itself: TLS's own would change what another thread is in, and the child of a fork may
            # have a copy of the descriptor.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class BulkPool:
    """The sockets to one host, and the threads that serve them."""

    def __init__(self, host: str, port: int, host_header: str, tls: ssl.SSLContext | None, timeout: float) -> None:
        self.host_header = host_header
        self._host = host
        self._port = port
        self._tls = tls
        self._timeout = timeout
        self._lock = threading.Lock()
        self._idle: list[BulkConnection] = []
        self._jobs: queue.SimpleQueue[BulkExchange | None] = queue.SimpleQueue()
        self._nthreads = 0
        self._nresting = 0
        self._is_closed = False

    def lend(self, exchange: BulkExchange) -> None:
        """Has a thread serve it, now or when there is one."""
        with self._lock:
            self._jobs.put(exchange)
            if self._jobs.qsize() > self._nresting and self._nthreads < _MAX_THREADS:
                self._nthreads += 1
                threading.Thread(target=self._work, name="s3dlio-s3-bulk", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                rest = 0.0 if self._is_closed else _MAX_REST
                self._nresting += 1
            try:
                exchange = self._jobs.get(timeout=rest)
            except queue.Empty:
                exchange = None
            with self._lock:
                self._nresting -= 1
                if exchange is None and (self._is_closed or self._jobs.empty()):
                    self._nthreads -= 1
                    return
            if exchange is not None and not exchange.is_gone:
                exchange.serve()

    def connection(self, exchange: BulkExchange) -> tuple[BulkConnection, bool]:
        """One for this exchange, and whether it had served another."""
        now = time.monotonic()
        while True:
            with self._lock:
                found = self._idle.pop() if self._idle else None  # the last that was used, so that others grow old
            if found is None:
                break
            if now - found.since < MAX_IDLE and found.is_open():
                found.lend(exchange)
                return found, True
            found.close()
        made = BulkConnection(self._connect())
        made.lend(exchange)
        return made, False

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((self._host, self._port), self._timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
            sock.settimeout(None)  # the clock sees what stalls, and breaks it off
        except BaseException:
            sock.close()
            raise
        return sock

    def take_back(self, connection: BulkConnection, is_whole: bool) -> None:
        connection.lend(None)
        connection.since = time.monotonic()
        with self._lock:
            keeps = is_whole and not self._is_closed
            if keeps:
                self._idle.append(connection)
        if not keeps:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for _ in range(self._nresting):
                self._jobs.put(None)
        for connection in idle:
            connection.close()


def tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Trusts the certificates of a file, or the system's."""
    return ssl.create_default_context(cafile=ca_bundle)
