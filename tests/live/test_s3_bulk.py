"""Long bodies over sockets: what a server of one's own can do to them."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
import servers
from live_process import interrupt
from proxy import wait_until

import s3dlio
from s3dlio import aio
from s3dlio._stores import s3_bulk

SIZE = 12 << 20
REFUSAL = b"<Error><Code>AccessDenied</Code><Message>not here</Message></Error>"

Head = dict[str, str]


class Teller:
    """A server on which each connection is served by ``serve(socket, head of a request)`` until that returns False."""

    def __init__(self, serve: Callable[[socket.socket, str, Head], bool]) -> None:
        self._serve = serve
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self.over.is_set():
            self._listener.settimeout(0.1)
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb", buffering=0) as file, suppress(OSError):
            connection.settimeout(20)
            while True:
                lines = []
                while (line := _line(file)) not in ("", "\r\n"):
                    lines.append(line.strip())
                if not lines:
                    return
                self.requests += 1
                head = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines[1:])}
                if not self._serve(connection, lines[0].split()[0], head):
                    return

    def stop(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        self._listener.close()


def _line(file: socket.SocketIO) -> str:
    line = b""
    while not line.endswith(b"\n"):
        try:
            byte = file.read(1)
        except OSError:
            return ""
        if not byte:
            return ""
        line += byte
    return line.decode("latin-1")


@pytest.fixture
def tell(s3: str) -> Iterator[Callable[[Callable[[socket.socket, str, Head], bool]], Teller]]:
    tellers: list[Teller] = []

    def start(serve: Callable[[socket.socket, str, Head], bool]) -> Teller:
        tellers.append(Teller(serve))
        s3dlio.configure_s3(endpoint_url=tellers[-1].url, backoff=0.01, stall_timeout=3.0)
        return tellers[-1]

    yield start
    servers.disconnect()
    for teller in tellers:
        teller.stop()
    assert "s3dlio-s3-bulk" not in [thread.name for thread in threading.enumerate()]


def answer(status: str, body: bytes = b"", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def swallow(connection: socket.socket, nbytes: int) -> None:
    while nbytes > 0:
        got = len(connection.recv(min(nbytes, 1 << 20)))
        if got == 0:
            return
        nbytes -= got


@pytest.mark.parametrize("how", ["open", "closed", "half closed", "reads on"])
def test_refusal_before_the_body_is_read_is_heard_at_once(tell: Callable[..., Teller], how: str) -> None:
    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        connection.sendall(answer("403 Forbidden", REFUSAL))
        if how == "half closed":
            connection.shutdown(socket.SHUT_WR)
        if how == "reads on":
            swallow(connection, int(head["content-length"]))
        return how != "closed" and not teller.over.wait(10 if how != "reads on" else 0)

    teller = tell(serve)
    began = time.monotonic()
    with pytest.raises(s3dlio.PermissionDeniedError, match="AccessDenied: not here"):
        s3dlio.put("s3://abc/d", bytes(SIZE))
    assert time.monotonic() - began < 2
    assert teller.requests == 1
    teller.over.set()


def test_connection_is_used_again_and_one_that_was_closed_is_not(tell: Callable[..., Teller]) -> None:
    connections: set[int] = set()
    closes = False

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        connections.add(id(connection))
        swallow(connection, int(head["content-length"]))
        connection.sendall(answer("200 OK", more='ETag: "e"\r\n'))
        return not closes

    teller = tell(serve)
    for _ in range(5):
        s3dlio.put("s3://abc/d", bytes(2 << 20))
    assert len(connections) == 1
    closes = True
    for _ in range(5):
        s3dlio.put("s3://abc/d", bytes(2 << 20))
        time.sleep(0.05)  # for the end to arrive
    assert teller.requests == 10  # none was repeated


def test_connection_that_is_not_used_is_closed_after_a_while(
    tell: Callable[..., Teller], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It stayed open until the next request, which may never come.
    monkeypatch.setattr(s3_bulk, "MAX_IDLE", 2.5)
    ended: list[float] = []

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        swallow(connection, int(head["content-length"]))
        connection.sendall(STORED)
        assert connection.recv(1) == b""
        ended.append(time.monotonic())
        return False

    tell(serve)
    s3dlio.put("s3://abc/d", bytes(2 << 20))
    assert wait_until(lambda: bool(ended), 6)


def test_more_requests_than_threads_take_their_turn(tell: Callable[..., Teller]) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        swallow(connection, int(head["content-length"]))
        time.sleep(0.05)
        with lock:
            under_way -= 1
        connection.sendall(answer("200 OK", more='ETag: "e"\r\n'))
        return True

    teller = tell(serve)
    data = bytes(1 << 20)
    s3dlio.put_many(((f"s3://abc/{number}", data) for number in range(100)), max_in_flight=64)
    assert teller.requests == 100
    assert 8 < most <= 32


@pytest.mark.parametrize("fault", ["another tag", "too long", "too short", "no length"])
def test_range_that_is_not_what_was_asked_for(tell: Callable[..., Teller], fault: str) -> None:
    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        if method == "HEAD":
            connection.sendall(f'HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: "one"\r\n\r\n'.encode())
            return True
        if "range" not in head:
            connection.sendall(f'HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: "one"\r\n\r\n'.encode())
            with suppress(OSError):  # it is not wanted like that
                connection.sendall(bytes(SIZE))
            return False
        first, last = map(int, head["range"].removeprefix("bytes=").split("-"))
        tag = '"two"' if fault == "another tag" and first else '"one"'
        told = last - first + 1 + {"too long": 1, "too short": -1}.get(fault, 0)
        length = f"Content-Length: {told}\r\n" if fault != "no length" else "Connection: close\r\n"
        connection.sendall(
            f"HTTP/1.1 206 Partial Content\r\n{length}Content-Range: bytes {first}-{last}/{SIZE}\r\n"
            f"ETag: {tag}\r\n\r\n".encode()
            + bytes(told)
        )
        return fault != "no length"

    tell(serve)
    s3dlio.configure_s3(retries=1)
    with pytest.raises(s3dlio.StorageError, match="replaced" if fault == "another tag" else "asked for"):
        s3dlio.get("s3://abc/d")


STORED = answer("200 OK", more='ETag: "e"\r\n')


def test_answer_that_leads_elsewhere_needs_no_body_to_be_sent(tell: Callable[..., Teller]) -> None:
    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        told = b"<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>"
        connection.sendall(answer("301 Moved Permanently", told, "x-amz-bucket-region: eu-west-9\r\n"))
        return not teller.over.wait(1)

    teller = tell(serve)
    with pytest.raises(s3dlio.StorageError, match=r"PermanentRedirect.*eu-west-9"):
        s3dlio.put("s3://abc/d", bytes(SIZE))
    assert teller.requests == 1


def test_answer_in_chunks_comes_byte_by_byte(tell: Callable[..., Teller]) -> None:
    # Half a line of the framing was taken for what comes next, again and again, without a look at the socket.
    told = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n"
    told += b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (REFUSAL[:20], REFUSAL[20:]))
    told += b"0\r\nX: y\r\n\r\n"
    connections: set[int] = set()

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        connections.add(id(connection))
        swallow(connection, int(head["content-length"]))
        for byte in told:
            connection.sendall(bytes([byte]))
            time.sleep(0.001)
        return True

    tell(serve)
    for _ in range(2):
        with pytest.raises(s3dlio.PermissionDeniedError, match="AccessDenied: not here"):
            s3dlio.put("s3://abc/d", bytes(1 << 20))
    assert len(connections) == 1


def test_success_before_the_body_was_sent_is_none(tell: Callable[..., Teller]) -> None:
    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        connection.sendall(STORED)
        return not teller.over.wait(1)

    teller = tell(serve)
    s3dlio.configure_s3(retries=1)
    with pytest.raises(s3dlio.StorageError, match="answered before the body was sent"):
        s3dlio.put("s3://abc/d", bytes(SIZE))
    assert teller.requests == 2


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
@pytest.mark.parametrize("when", ["before the body", "after the body"])
def test_what_is_said_before_the_answer_is_not_the_answer(tell: Callable[..., Teller], status: str, when: str) -> None:
    sizes: list[int] = []

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        if when == "before the body":
            connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
            time.sleep(0.05)
        swallow(connection, int(head["content-length"]))
        sizes.append(int(head["content-length"]))
        if when == "after the body":
            connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
            time.sleep(0.05)
        connection.sendall(STORED if len(sizes) == 1 else answer("403 Forbidden", REFUSAL))
        return True

    tell(serve)
    s3dlio.put("s3://abc/d", bytes(SIZE))
    with pytest.raises(s3dlio.PermissionDeniedError):  # its own answer, not what is left of the first
        s3dlio.put("s3://abc/d", bytes(SIZE + 1))
    assert sizes == [SIZE, SIZE + 1]


def test_connection_on_which_more_came_than_was_asked_for_is_not_used_again(tell: Callable[..., Teller]) -> None:
    connections: set[int] = set()

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        swallow(connection, int(head["content-length"]))
        connections.add(id(connection))
        connection.sendall(STORED * 2 if len(connections) == 1 else answer("403 Forbidden", REFUSAL))
        return True

    tell(serve)
    s3dlio.put("s3://abc/d", bytes(2 << 20))
    with pytest.raises(s3dlio.PermissionDeniedError):
        s3dlio.put("s3://abc/d", bytes(2 << 20))
    assert len(connections) == 2


def test_slow_bytes_are_no_stall(tell: Callable[..., Teller]) -> None:
    size = 1 << 20

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        tell_size = f'Content-Length: {size}\r\nContent-Range: bytes 0-{size - 1}/{size}\r\nETag: "e"\r\n\r\n'
        connection.sendall(
            f"HTTP/1.1 {'200 OK' if method == 'HEAD' else '206 Partial Content'}\r\n{tell_size}".encode()
        )
        for _ in range(16 if method == "GET" else 0):
            time.sleep(0.15)
            connection.sendall(bytes(size // 16))
        return True

    teller = tell(serve)
    s3dlio.configure_s3(stall_timeout=0.8)
    with s3dlio.open_reader("s3://abc/d", buffer_size=1) as reader:
        assert reader.read(size) == bytes(size)
    assert teller.requests == 2


def serve_object(connection: socket.socket, method: str, head: Head) -> bool:
    """One of SIZE bytes, in ranges, and where one can be put."""
    if method == "PUT":
        swallow(connection, int(head["content-length"]))
        connection.sendall(STORED)
        return True
    if "range" not in head:
        # Of a GET, nobody wants the rest.
        connection.sendall(f'HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: "e"\r\n\r\nx'.encode())
        return True
    first, last = map(int, head["range"].removeprefix("bytes=").split("-"))
    told = f'Content-Length: {last - first + 1}\r\nContent-Range: bytes {first}-{last}/{SIZE}\r\nETag: "e"\r\n'
    connection.sendall(f"HTTP/1.1 206 Partial Content\r\n{told}\r\n".encode() + bytes(last - first + 1))
    return True


def test_many_that_are_broken_off_do_not_wait_for_one_after_the_other(
    tell: Callable[..., Teller], monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine each of 32 threads needs a while to be out of its call: to break them off in turn took 4 s.
    receive_into, send = s3_bulk.BulkConnection.receive_into, s3_bulk.BulkConnection.send
    calls = 0

    def slowly(call: Callable[..., int]) -> Callable[..., int]:
        def slow(connection: s3_bulk.BulkConnection, piece: memoryview) -> int:
            nonlocal calls
            calls += 1
            time.sleep(0.3 if len(piece) > 60_000 else 0)
            return call(connection, piece)

        return slow

    def cancel(begin: Callable[[], Coroutine[Any, Any, object]]) -> None:
        async def main() -> None:
            task = asyncio.ensure_future(begin())
            await asyncio.sleep(1)
            task.cancel()
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 1

        asyncio.run(main())

    monkeypatch.setattr(s3_bulk.BulkConnection, "receive_into", slowly(receive_into))
    monkeypatch.setattr(s3_bulk.BulkConnection, "send", slowly(send))
    tell(serve_object)
    uris, data = [f"s3://abc/{number}" for number in range(64)], bytes(SIZE)
    interrupt(lambda: s3dlio.get_many(uris), lambda: calls > 100, 1)
    cancel(lambda: aio.get_many(uris))
    calls = 0
    interrupt(lambda: s3dlio.put_many((uri, data) for uri in uris), lambda: calls > 100, 1)
    cancel(lambda: aio.put_many((uri, data) for uri in uris))


def test_log_that_fails_stops_no_deadline(tell: Callable[..., Teller]) -> None:
    # The thread that looks after all requests ended with it, and then they waited for ever.
    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("no room in the log")

    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        teller.over.wait(10)
        return False

    teller = tell(serve)
    s3dlio.configure_s3(stall_timeout=0.3, retries=1)
    logger, handler = logging.getLogger("s3dlio"), Full()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        for work in (lambda: s3dlio.get("s3://abc/d"), lambda: s3dlio.put("s3://abc/d", bytes(2 << 20))):
            with pytest.raises(s3dlio.TimedOutError, match="tried 2 times"):
                work()
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        teller.over.set()


def test_threads_outlive_what_goes_wrong_in_them(tell: Callable[..., Teller]) -> None:
    def serve(connection: socket.socket, method: str, head: Head) -> bool:
        swallow(connection, int(head["content-length"]))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n" if is_bad else STORED)
        return True

    is_bad = True
    tell(serve)

    def fail() -> tuple[str, str, str | None]:
        raise SystemExit

    s3dlio.configure_s3(retries=0)
    for _ in range(40):  # more than there may be threads
        with pytest.raises(s3dlio.StorageError, match="how long it is"):
            s3dlio.put("s3://abc/d", bytes(1 << 20))
    s3dlio.configure_s3(credentials=fail)
    for _ in range(40):
        with pytest.raises(s3dlio.PermissionDeniedError, match="SystemExit"):
            s3dlio.put("s3://abc/d", bytes(1 << 20))
    s3dlio.configure_s3(credentials=None)
    is_bad = False
    s3dlio.put("s3://abc/d", bytes(1 << 20))
