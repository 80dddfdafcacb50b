"""Long bodies to and from S3, over sockets of Python's own, each in a thread while it is busy.

awscrt cuts a body into pieces of 16 KiB and asks Python for each, in one thread for all connections.  A socket takes
and gives hundreds of KiB in one call, which lets the others run meanwhile.
What is short stays with awscrt, which needs no thread to wait; signatures are always its work.
"""

from __future__ import annotations

import collections
import fcntl
import select
import signal
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import awscrt.auth

from s3dlio import _cancel
from s3dlio._errors import ClosedError
from s3dlio._native import ffi
from s3dlio._stores.s3_answer import UNTIL_END, Framing, Head, parse_head
from s3dlio._stores.s3_http import MAX_IDLE, PIECE, Exchange

# As many connections to a host, of all writers and readers.
_MAX_THREADS = 32
# For credentials, which may have to be asked for.
_MAX_SIGNING = 60.0
# Milliseconds after which who waits for the server looks whether that is still wanted.
_LOOK = 100

# Nothing for us has come yet: it was TLS's own.
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BulkExchange(Exchange):
    """As `Exchange`, done by a thread of the pool's from its beginning to its end."""

    _pool: BulkPool
    _connection: BulkConnection | None
    # Who waits for the thread to be out of the caller's memory, where it is from `_is_sent` on.
    _waiting: tuple[Callable[[], None], ...] = ()

    def take_away(self, then: Callable[[], None]) -> None:
        with self._lock:
            self.is_gone = True  # which the thread sees at its next piece, or look
            self._waiting += (then,)
            is_used = self._is_sent
        if not is_used:
            self._leave_memory()

    def begin(self) -> None:
        # Whoever has to take it away may need a while to come to that, with all these threads before it.
        self._is_unwanted = _cancel.teller()
        super().begin()

    def check(self) -> None:
        """Raises when it was taken away, or is going to be."""
        if self.is_gone or self._is_unwanted():
            raise ClosedError("the request was broken off")

    def _leave_memory(self) -> None:
        with self._lock:
            self._is_sent = False
            self._into = None
            waiting, self._waiting = self._waiting, ()
        if self._body is not None:
            self._body.take_away()
        for then in waiting:
            then()

    def serve(self) -> None:
        """In a thread of the pool's."""
        self.moved()
        is_whole = False
        error: Exception | None = None
        try:
            self.check()
            connection, self.was_used = self._pool.connection(self)
            self._connection = connection
            head = self._head()
            with self._lock:
                self._is_sent = not self.is_gone
            is_whole = self._transfer(connection, head) if self._is_sent else True
        except BaseException as failure:
            error = failure if isinstance(failure, Exception) else RuntimeError(type(failure).__name__)
            # Bare: whoever keeps it would keep the frames, and in them the client.
            error.__context__ = None
            error = error.with_traceback(None)
        self._leave_memory()
        self._finish(error, is_whole=is_whole and error is None and self._own_error is None)

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
        is_sent = False
        try:
            is_sent = connection.send_all(head) and (self._body is None or self._body.send_by(connection.send))
        except OSError as error:
            # A server that refuses a body may close without having read it, once it has said why.
            refused = error
        try:
            answer = connection.head(self.moved)
        except OSError as error:
            raise refused or error from None
        if not is_sent and answer.status < 300:
            raise refused or ConnectionError(f"{answer.status} was answered before the body was sent")
        self._on_response(answer.status, answer.headers)
        framing = Framing(answer, connection.line)
        while self._own_error is None and not framing.is_over:
            try:
                self._receive(connection, framing)
            except ConnectionResetError:
                if answer.length != UNTIL_END:
                    raise
                break
            self.moved()
        return is_sent and framing.is_over and answer.keeps_alive and connection.has_read_all()

    def _receive(self, connection: BulkConnection, framing: Framing) -> None:
        """Takes a piece of the answer's body, as much as has come."""
        size = min(PIECE, framing.room)
        room = 0
        if self._into is not None and self._status in self._call.accept:
            room = min(size, len(self._into) - self._received)
        if room > 0:
            count = connection.receive_into(memoryview(ffi.buffer(self._into + self._received, room)))
            self._received += count
        else:
            chunk = connection.receive(size)
            count = len(chunk)
            self._on_body(chunk)
        framing.took(count)

    def _refuse(self, error: Exception) -> None:
        """The thread breaks it off, and closes the connection, when it has seen this."""
        self._own_error = error.with_traceback(None)


class BulkConnection:
    """A socket that does not block, what has come from it and was not asked for yet, and whose it is for the moment."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._poll = select.poll()
        self._poll.register(sock)
        self._come = bytearray()
        self.since = 0.0
        self.owner: BulkExchange | None = None

    def send_all(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest:
            count = self.send(rest)
            if count == 0:
                return False
            rest = rest[count:]
        return True

    def send(self, piece: memoryview) -> int:
        """Sends some of it, or nothing when the server has answered already: it may read no more."""
        while True:
            self._check()
            if self._has_come(0) and self._is_answered():
                return 0
            try:
                return self._sock.send(piece)
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(select.POLLIN | select.POLLOUT)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)

    def head(self, moved: Callable[[], None]) -> Head:
        """Waits for the answer, whatever the server says before it (RFC 9110, "Informational 1xx").  What the kernel
        has still to send counts as moving."""
        left = self._unsent()
        while True:
            while (found := parse_head(self._come)) is None:
                self._check()
                if not self._has_come(_LOOK):
                    before, left = left, self._unsent()
                    if left < before:
                        moved()
                    continue
                with suppress(*_LATER):
                    self._read()
                moved()
            if found.status >= 200:
                return found

    def line(self) -> bytes:
        """A line of the body's framing, without its end."""
        while (end := self._come.find(b"\r\n")) < 0:
            if len(self._come) > 1000:
                raise ConnectionError("the answer makes no sense: a chunk without a size")
            self._read_waiting()
        line = bytes(self._come[:end])
        del self._come[: end + 2]
        return line

    def receive(self, size: int) -> bytes:
        """What has come of the body, at least one byte, and no more than this."""
        if not self._come:
            self._read_waiting()
        found = bytes(self._come[:size])
        del self._come[:size]
        return found

    def receive_into(self, room: memoryview) -> int:
        if not self._come:
            return self._read_into(room)
        found = self.receive(len(room))
        room[: len(found)] = found
        return len(found)

    def has_read_all(self) -> bool:
        return not self._come and (self._tls is None or not self._tls.pending())

    def is_open(self) -> bool:
        """Whether the server has neither closed it nor said what nobody has asked for."""
        return self.has_read_all() and not self._has_come(0)

    def close(self) -> None:
        """For the thread that uses it, or when none does: another one would be left with a descriptor that may be
        somebody else's by then."""
        with suppress(OSError):
            # Of the connection itself, of which the child of a fork may have a copy.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        self._sock.close()

    def _is_answered(self) -> bool:
        """Takes what has come while a body was sent, and tells whether that begins an answer."""
        with suppress(*_LATER):
            self._read()
        while (found := parse_head(self._come, takes=False)) is not None:
            if found.status >= 200:
                return True
            parse_head(self._come)
        return False

    def _read_waiting(self) -> None:
        room = bytearray(65536)
        count = self._read_into(memoryview(room))
        self._come += room[:count]

    def _read_into(self, room: memoryview) -> int:
        while True:
            self._check()
            try:
                count = self._sock.recv_into(room)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            else:
                if count == 0:
                    raise ConnectionResetError("closed in the middle of an answer")
                return count

    def _read(self) -> None:
        """What has come."""
        found = self._sock.recv(65536)
        if not found:
            raise ConnectionResetError("closed in the middle of an answer")
        self._come += found

    def _wait(self, events: int, milliseconds: int = _LOOK) -> bool:
        self._poll.modify(self._sock, events)
        return bool(self._poll.poll(milliseconds))

    def _has_come(self, milliseconds: int) -> bool:
        return (self._tls is not None and self._tls.pending() > 0) or self._wait(select.POLLIN, milliseconds)

    def _check(self) -> None:
        if self.owner is not None:
            self.owner.check()

    def _unsent(self) -> int:
        """Bytes in the kernel's buffer that the server has not acknowledged (tcp(7), SIOCOUTQ)."""
        count: int = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        return count


class BulkPool:
    """The sockets to one host, and the threads that serve them."""

    def __init__(self, host: str, port: int, host_header: str, tls: ssl.SSLContext | None, timeout: float) -> None:
        self.host_header = host_header
        self._host = host
        self._port = port
        self._tls = tls
        self._timeout = timeout
        self._changed = threading.Condition()
        self._idle: list[BulkConnection] = []
        self._jobs: collections.deque[BulkExchange] = collections.deque()
        self._nthreads = 0
        self._nresting = 0
        self._is_closed = False

    def lend(self, exchange: BulkExchange) -> None:
        """Has a thread serve it, now or when there is one."""
        with self._changed:
            self._jobs.append(exchange)
            if self._nresting >= len(self._jobs):
                self._changed.notify()
            elif self._nthreads < _MAX_THREADS:
                self._nthreads += 1
                try:
                    threading.Thread(target=self._work, name="s3dlio-s3-bulk", daemon=True).start()
                except BaseException:
                    self._nthreads -= 1
                    if self._nthreads == 0:
                        self._jobs.remove(exchange)
                        raise

    def _work(self) -> None:
        # A connection that is broken off says so by an error; a program may want to die of the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        while (exchange := self._next()) is not None:
            try:
                if not exchange.is_gone:
                    exchange.serve()
            except BaseException:  # nothing that is known of; but a thread that is counted and dead is missed for ever
                with self._changed:
                    self._nthreads -= 1
                raise
            del exchange
        self._prune()

    def _next(self) -> BulkExchange | None:
        """What a thread is to do, or None if it is to end."""
        with self._changed:
            is_over = False
            while not self._jobs:
                if self._is_closed or is_over:
                    self._nthreads -= 1
                    return None
                self._nresting += 1
                # As long as a connection: so the last thread to end closes what is left of them.
                is_over = not self._changed.wait(MAX_IDLE)
                self._nresting -= 1
            return self._jobs.popleft()

    def connection(self, exchange: BulkExchange) -> tuple[BulkConnection, bool]:
        """One for this exchange, and whether it had served another."""
        while True:
            self._prune()
            with self._changed:
                found = self._idle.pop() if self._idle else None  # the last that was used, so that others grow old
            if found is None:
                break
            if found.is_open():
                found.owner = exchange
                return found, True
            found.close()
        made = BulkConnection(self._connect())
        made.owner = exchange
        return made, False

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((self._host, self._port), self._timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def take_back(self, connection: BulkConnection, is_whole: bool) -> None:
        """The end of a loan: ``is_whole`` if the connection can serve another exchange."""
        connection.owner = None
        connection.since = time.monotonic()
        with self._changed:
            keeps = is_whole and not self._is_closed
            if keeps:
                self._idle.append(connection)
        if not keeps:
            connection.close()

    def _prune(self) -> None:
        """Closes what was idle for too long."""
        oldest = time.monotonic() - MAX_IDLE
        with self._changed:
            old = [connection for connection in self._idle if connection.since < oldest]
            self._idle = [connection for connection in self._idle if connection.since >= oldest]
        for connection in old:
            connection.close()

    def close(self) -> None:
        """Lets go of all that are idle, and of the others when they come back."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()


def tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Trusts the certificates of a file, or the system's.  Not create_default_context(), which writes the keys of
    connections where SSLKEYLOGFILE says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_bundle:
        context.load_verify_locations(ca_bundle)
    else:
        context.load_default_certs()
    return context
