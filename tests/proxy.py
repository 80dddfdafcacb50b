"""A proxy between a client and a server of S3 or Azure that breaks what passes through it.

A `Fault` says which requests it is for and what happens to them; each tells afterwards how often it has fired.
"""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from breakage import ACTIONS, BrokenError, Exchange, Request, Response

# A server that says nothing for so long never will.
PATIENCE = 60.0


@dataclass
class Fault:
    """``kind`` happens to the first ``times`` requests of ``operation`` after ``skip`` others, of those whose target
    has ``key`` in it.  ``at`` says where in the bytes, from 0 to 1."""

    kind: str
    operation: str
    times: int = 1
    skip: int = 0
    key: str = ""
    at: float = 0.5
    fired: int = field(default=0, compare=False)

    def takes(self, request: Request) -> bool:
        if request.operation != self.operation or self.key not in unquote(request.target):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.fired >= self.times:
            return False
        self.fired += 1
        return True


class Proxy:
    """Listens on ``url`` for as long as the ``with`` block lasts."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._tls = tls
        self.faults: list[Fault] = []
        # The share of requests that one of these kinds happens to, at random.
        self.chance = 0.0
        self.kinds: tuple[str, ...] = ()
        self.random = random.Random(0)
        # What has come: operation and path.
        self.requests: list[tuple[str, str]] = []
        # How often which kind has happened to which operation.
        self.fired: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopping = True
            for each in (self._listener, *self._sockets):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)  # which also wakes who waits for it
        deadline = time.monotonic() + 20
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a thread of the proxy hangs"
        self._listener.close()

    def connections(self) -> int:
        with self._lock:
            return len(self._sockets)

    @contextmanager
    def breaking(self, *faults: Fault) -> Iterator[None]:
        """With these faults, beside those of other threads."""
        with self._lock:
            self.faults = [*self.faults, *faults]
        try:
            yield
        finally:
            with self._lock:
                self.faults = [fault for fault in self.faults if not any(fault is each for each in faults)]

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # no more
                return
            self._begin(self._serve, client)

    @contextmanager
    def _open(self, connection: socket.socket) -> Iterator[socket.socket]:
        """A connection that ends with the proxy at the latest."""
        connection.settimeout(PATIENCE)
        with connection:
            with self._lock:
                if self._stopping:
                    raise ConnectionAbortedError
                self._sockets.add(connection)
            try:
                yield connection
            finally:
                with self._lock:
                    self._sockets.discard(connection)

    def _kind_for(self, request: Request) -> tuple[str | None, float]:
        with self._lock:
            self.requests.append((request.operation, unquote(urlsplit(request.target).path)))
            for fault in self.faults:
                if fault.takes(request):
                    self.fired[fault.kind, request.operation] += 1
                    return fault.kind, fault.at
            if self.kinds and self.random.random() < self.chance:
                kind = self.random.choice(self.kinds)
                self.fired[kind, request.operation] += 1
                return kind, self.random.random()
        return None, 0.0

    def _serve(self, connection: socket.socket) -> None:
        quietly = suppress(OSError, EOFError, http.client.HTTPException)
        if self._tls is not None:
            with quietly, connection:
                connection.settimeout(PATIENCE)
                self._talk(self._tls.wrap_socket(connection, server_side=True))
        else:
            self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        quietly = suppress(OSError, EOFError, http.client.HTTPException)
        with quietly, self._open(connection) as client, client.makefile("rb", 1 << 18) as reader:
            try:
                while self._one(reader, client):
                    pass
            except BrokenError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _one(self, reader: Any, client: socket.socket) -> bool:
        first, *lines = _head_lines(reader)
        method, target, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = int({name.lower(): value for name, value in headers}.get("content-length", "0"))
        request = Request(method, target, headers, b"")
        kind, at = self._kind_for(request)
        if kind == "reset in mid body":
            reader.read(length // 2)
            raise BrokenError
        request.body = reader.read(length)
        if len(request.body) < length:
            return False
        response = ACTIONS[kind](Exchange(request, client, at, self.forward)) if kind else self.forward(request)
        if response is None:
            return False
        client.sendall(response.head)
        if method != "HEAD":
            client.sendall(response.body)
        return True

    def forward(self, request: Request, head: bytes | None = None) -> Response:
        with self._open(socket.create_connection(self._upstream, PATIENCE)) as upstream:
            with suppress(ConnectionError):  # it may have answered early
                upstream.sendall((head or request.head()) + b"\r\nConnection: close\r\n\r\n")
                upstream.sendall(request.body)
            answer = http.client.HTTPResponse(upstream, method=request.method)
            try:
                answer.begin()
                body = answer.read()
            finally:
                answer.close()
            lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    lines.append(f"{name}: {value}")
            if answer.getheader("Content-Length") is None and request.method != "HEAD":
                lines.append(f"Content-Length: {len(body)}")  # the client's connection goes on
        return Response("\r\n".join([*lines, "", ""]).encode("latin-1"), body)


def _head_lines(reader: Any) -> list[str]:
    lines = []
    while line := reader.readline(1 << 16).decode("latin-1").rstrip("\r\n"):
        lines.append(line)
    if not lines:
        raise EOFError
    return lines


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
