"""Azure where the network is slow or says nothing: what is broken off ends at once, deadlines hold, and no answer is
believed that is of something else."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import queue
import re
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import servers
from certificates import certificate
from live_process import interrupt
from proxy import Fault, Proxy, wait_until

import s3dlio
from s3dlio import aio
from s3dlio._stores import azure, azure_client
from s3dlio._stores.azure_http import Watch, _Connection

MIB = 1 << 20
# Of a wait that would last for 10 s and more.
SOON = 2.0
HEAD = (
    b'HTTP/1.1 %s\r\nContent-Length: 1000\r\nETag: "1"\r\nLast-Modified: Mon, 27 Nov 2023 10:00:00 GMT\r\n'
    b"x-ms-blob-type: BlockBlob\r\n%s\r\n"
)
FOUND = HEAD % (b"200 OK", b"")
PART = HEAD % (b"206 Partial Content", b"Content-Range: bytes 0-999/1000\r\n")


@pytest.fixture
def blob(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a blob of whatever server a test starts."""
    for name, value in servers.azure_environment("").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZURE_STORAGE_KEY", servers.ACCOUNT_KEY)
    yield f"az://{servers.ACCOUNT}/tests/a"
    servers.disconnect_azure()


@contextmanager
def server(talk: Callable[[socket.socket, bytes], None], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """An endpoint, with TLS if there is a context, where ``talk`` answers each request, which it gets without its body;
    the connection ends with it."""
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection if context is None else context.wrap_socket(connection, True) as own:
            connections.append(own)
            while head := _head(own):
                talk(own, head)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept, daemon=True))
        threads[0].start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for each in (listener, *connections):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()


def _head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(1 << 16)
        if not piece:
            return b""
        head += piece
    return head


def nothing(connection: socket.socket, head: bytes) -> None:
    connection.recv(1)  # until the client gives up


def half(connection: socket.socket, head: bytes, more: bytes = b"") -> None:
    if head.startswith(b"HEAD"):
        connection.sendall(FOUND)
        return
    connection.sendall(PART[:-2] + more + b"\r\n" + bytes(500))
    nothing(connection, head)


def half_and_last(connection: socket.socket, head: bytes) -> None:
    half(connection, head, b"Connection: close\r\n")


def drop_by_drop(connection: socket.socket, head: bytes) -> None:
    if head.startswith(b"HEAD"):
        connection.sendall(FOUND)
        return
    connection.sendall(PART)
    for _ in range(1000):
        connection.sendall(b"x")
        time.sleep(0.1)


def header_by_header(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        connection.sendall(b"x-%d: x\r\n" % number)
        time.sleep(0.1)


def check_cancelled_soon(begin: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(begin())
        await asyncio.sleep(0.5)
        assert not task.done()
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < SOON

    asyncio.run(main())


@pytest.mark.parametrize("talk", [nothing, half, half_and_last, drop_by_drop, header_by_header])
def test_wait_for_an_answer_is_broken_off(blob: str, talk: Callable[[socket.socket, bytes], None]) -> None:
    # Of a connection that was to be closed after the answer nobody knew the socket any more.
    with server(talk) as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}")
        check_cancelled_soon(lambda: aio.get(blob))


@contextmanager
def silence() -> Iterator[str]:
    """An endpoint to which no connection comes about: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_wait_for_a_connection_is_broken_off(blob: str, tmp_path: Path) -> None:
    # It lasted until connect_timeout, since nobody knew the socket yet.
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"x")
    with silence() as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}")
        check_cancelled_soon(lambda: aio.get(blob))
        check_cancelled_soon(lambda: aio.get_many([blob] * 5))
        check_cancelled_soon(lambda: aio.upload(tmp_path, blob))
        interrupt(lambda: s3dlio.put_many([(blob, b"x")] * 5))


def test_deadline_holds_for_the_wait_for_a_connection(blob: str) -> None:
    with silence() as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}", connect_timeout=20, operation_timeout=1)
        began = time.monotonic()
        with pytest.raises(s3dlio.TimedOutError, match="not done after 1 s"):
            s3dlio.get(blob)
        assert time.monotonic() - began < 1 + SOON


def test_wait_for_tls_is_broken_off(blob: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        s3dlio.configure_azure(endpoint_url=f"https://127.0.0.1:{listener.getsockname()[1]}")
        check_cancelled_soon(lambda: aio.get(blob))


def test_wait_for_tls_within_the_tls_of_a_proxy_is_broken_off() -> None:
    # What urllib3 has there is no socket, but holds one; to break it off was a TypeError.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watch = Watch(time.monotonic() + 10, 10, lambda: False)
        watch.uses(SimpleNamespace(socket=ours))  # type: ignore[arg-type]
        watch.break_off()
        assert theirs.recv(1) == b""


def test_what_goes_through_tls_within_tls_goes_in_small_pieces() -> None:
    """There the time until a stall is for the whole of one: an upload at 600 kB/s ended after 1 MiB of it."""
    sent: list[int] = []

    def send(piece: memoryview) -> int:
        sent.append(len(piece))
        return len(piece)

    connection = _Connection("127.0.0.1")
    connection.sock = SimpleNamespace(send=send, settimeout=lambda seconds: None, close=lambda: None)
    connection.send(bytes(200 << 10))
    assert sent == [64 << 10] * 3 + [8 << 10]


def test_wait_behind_a_proxy_is_broken_off(blob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The connections of proxies were urllib3's own.
    with server(nothing) as address:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://{address}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "")
        s3dlio.configure_azure(endpoint_url="http://192.0.2.1")
        check_cancelled_soon(lambda: aio.get(blob))


def test_ctrl_c_does_not_wait_for_a_credential(blob: str) -> None:
    class Slow:
        def __init__(self) -> None:
            self.asked, self.over = threading.Event(), threading.Event()

        def get_token(self, *scopes: str, **settings: Any) -> None:
            self.asked.set()
            self.over.wait(20)
            raise ValueError("no token")

    credential = Slow()
    s3dlio.configure_azure(credential=credential, endpoint_url="https://127.0.0.1:9", retries=0)
    try:
        interrupt(lambda: s3dlio.get(blob), credential.asked.is_set)
        s3dlio.configure_azure(credential=None)  # the next request does not wait behind it
        with pytest.raises(s3dlio.StorageError, match="Failed to establish a new connection"):
            s3dlio.get(blob)
        assert not credential.over.is_set()
    finally:
        credential.over.set()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"stall_timeout": 1}, "timed out: nothing moved for 1 s"),
        ({"stall_timeout": 20, "operation_timeout": 1}, "not done after 1 s"),
    ],
)
def test_body_that_nobody_takes_is_given_up(blob: str, settings: dict[str, float], what: str) -> None:
    # The time was that for a connection.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        s3dlio.configure_azure(endpoint_url=url, connect_timeout=20, retries=0, **settings)
        began = time.monotonic()
        with pytest.raises(s3dlio.TimedOutError, match=what):
            s3dlio.put(blob, bytes(16 * MIB))
        assert 0.9 < time.monotonic() - began < 1 + SOON


@pytest.mark.parametrize("tls", [False, True])
def test_body_that_moves_slowly_is_sent_whole(
    blob: str, tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All that one call sends had to be through within the time for a connection.
    size = 8 * MIB
    requests: list[int] = []

    def slowly(connection: socket.socket, head: bytes) -> None:
        left = int(re.search(rb"Content-Length: (\d+)", head)[1]) - len(head.partition(b"\r\n\r\n")[2])
        while left > 0:
            time.sleep(0.005)
            left -= len(connection.recv(min(left, 1 << 14)))
            if left % (1 << 20) < 1 << 14:
                time.sleep(0.3)
        requests.append(left)
        connection.sendall(b'HTTP/1.1 201 Created\r\nContent-Length: 0\r\nETag: "1"\r\n\r\n')

    context = certificate(tmp_path, "127.0.0.1") if tls else None
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with server(slowly, context) as address:
        url = f"https://{address}" if tls else f"http://{address}"
        s3dlio.configure_azure(endpoint_url=url, connect_timeout=0.2, stall_timeout=1, retries=0)
        s3dlio.put(blob, bytes(size))
    assert requests == [0]


@pytest.mark.parametrize("talk", [drop_by_drop, header_by_header])
def test_deadline_holds_for_an_answer_that_never_ends(blob: str, talk: Callable[[socket.socket, bytes], None]) -> None:
    # The timeout of a socket begins anew with each byte.
    with server(talk) as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}", operation_timeout=1.0, stall_timeout=0.5)
        began = time.monotonic()
        with pytest.raises(s3dlio.TimedOutError, match="not done after 1 s"):
            s3dlio.get(blob)
        assert time.monotonic() - began < 4


def test_errors_say_in_plain_words_what_was_met(blob: str) -> None:
    # They named private classes, spoke of retries where there were none, and called a status invalid.
    def talk(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 404 There is none.\r\nContent-Length: 0\r\nx-ms-error-code: BlobNotFound\r\n\r\n")

    with server(talk) as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}", retries=0)
        with pytest.raises(s3dlio.NotFoundError, match=f"^stat {blob}: HTTP 404: BlobNotFound: There is none.$"):
            s3dlio.stat(blob)
    with pytest.raises(s3dlio.StorageError, match=f"^stat {blob}: {address}: Failed to .*Connection refused$"):
        s3dlio.stat(blob)


def test_ranges_that_are_cut_are_repeated_as_often_as_the_settings_say(
    blob: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The SDK repeated each three times more, with a second's sleep in between.
    came: list[bytes] = []

    def cut(connection: socket.socket, head: bytes) -> None:
        came.append(head)
        if head.startswith(b"HEAD"):
            connection.sendall(FOUND)
        else:
            connection.sendall(PART + bytes(500))
            connection.shutdown(socket.SHUT_RDWR)

    with server(cut) as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}", retries=2, backoff=0.01)
        with pytest.raises(s3dlio.StorageError, match="IncompleteRead") as caught:
            s3dlio.get(blob)
    assert caught.value.attempts == 3
    assert len([head for head in came if head.startswith(b"GET")]) == 3
    assert caplog.messages == []  # of azure.core there was a line of each


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"bytes 0-999/1000", b"bytes 1000-1999/1000"),
        (b"bytes 0-999/1000", b"bytes 0-999/2000"),
        (b'ETag: "1"', b'ETag: "2"'),
        (b'ETag: "1"\r\n', b""),
        (b"206 Partial Content", b"200 OK"),
    ],
)
def test_range_of_something_else_is_not_believed(blob: str, old: bytes, new: bytes) -> None:
    # The SDK compares neither the range nor the version of an answer with what it asked for.
    answers = [PART.replace(old, new) + b"x" * 1000]

    def talk(connection: socket.socket, head: bytes) -> None:
        connection.sendall(FOUND if head.startswith(b"HEAD") else answers[-1])

    with server(talk) as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}", retries=1, backoff=0.01)
        with pytest.raises(s3dlio.StorageError, match="another range or version") as caught:
            s3dlio.get(blob)
        assert caught.value.attempts == 2
        answers.append(PART + b"x" * 1000)
        assert s3dlio.get(blob) == b"x" * 1000


@pytest.mark.parametrize("missing", [b"ETag", b"Last-Modified", b"x-ms-blob-type"])
def test_properties_that_the_service_would_not_send_are_not_believed(blob: str, missing: bytes) -> None:
    answer = re.sub(missing + rb": [^\r]*\r\n", b"", FOUND)
    with server(lambda connection, head: connection.sendall(answer)) as address:
        s3dlio.configure_azure(endpoint_url=f"http://{address}", retries=1, backoff=0.01)
        for ask in (s3dlio.stat, s3dlio.exists, s3dlio.get):
            with pytest.raises(s3dlio.StorageError, match="the answer has no") as caught:
                ask(blob)
            assert caught.value.attempts == 2


def test_main_thread_takes_no_lock_that_ctrl_c_could_leave_held(container: str, tmp_path: Path) -> None:
    # Ctrl-C within urllib3's queue of connections left its lock held, and the next request hung for ever.
    entered: list[str] = []
    files = (threading.__file__, queue.__file__, logging.__file__)
    calls = ("__enter__", "start", "wait", "join", "notify", "put", "get", "_acquireLock", "acquire")

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename in files and frame.f_code.co_name in calls:
            entered.append(frame.f_code.co_qualname)

    def stream() -> None:
        with s3dlio.open_writer(f"{container}/stream", buffer_size=256 << 10) as writer:
            writer.write_chunk(bytes(MIB))

    (tmp_path / "file").write_bytes(b"x")
    s3dlio.put(f"{container}/a", bytes(17 * MIB))
    works: list[Callable[[], object]] = [
        stream,
        lambda: s3dlio.put(f"{container}/b", b"x"),
        lambda: s3dlio.get(f"{container}/b"),
        lambda: s3dlio.get(f"{container}/a"),
        lambda: s3dlio.list(container),
        lambda: s3dlio.copy(f"{container}/b", f"{container}/c"),
        lambda: s3dlio.put_many([(f"{container}/many/{number}", b"x") for number in range(3)]),
        lambda: s3dlio.get_many([f"{container}/b", f"{container}/c"]),
        lambda: s3dlio.upload(tmp_path / "file", f"{container}/"),
        lambda: s3dlio.download(f"{container}/many", tmp_path),
        lambda: s3dlio.delete(f"{container}/c"),
        lambda: s3dlio.delete(f"{container}/many", recursive=True),
        lambda: s3dlio.create_bucket(container),
        lambda: s3dlio.exists(f"{container}/b"),
    ]
    before = sys.getprofile()
    for number, work in enumerate(works):
        sys.setprofile(note)  # of this thread alone
        try:
            work()
        finally:
            sys.setprofile(before)
        assert entered == [], number


def test_error_of_a_stream_does_not_keep_its_blocks(container: str) -> None:
    # They lay in the frames of its traceback: 72 MiB for each failed writer, until the garbage collector came.
    with Proxy(os.environ["AZURE_STORAGE_ENDPOINT"]) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url, retries=0)
        proxy.faults = [Fault("500", "Put Block", 1000)]
        gc.disable()
        try:
            writer = s3dlio.open_writer(f"{container}/fails", buffer_size=256 << 10, in_flight=2)
            memory = weakref.ref(writer._stream._handle)
            with pytest.raises(s3dlio.StorageError, match="HTTP 500") as caught, writer:
                for _ in range(20):
                    writer.write_chunk(bytes(MIB))
            assert wait_until(lambda: memory() is None, 5)
            assert caught.value.status == 500
        finally:
            gc.enable()
        servers.disconnect_azure()


def test_batch_whose_answers_come_in_another_order_leaves_nothing(
    container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one that had failed was taken for deleted, and what was deleted already was deleted once more.
    client = azure_client.container_client
    asked: list[int] = []

    class Mixed:
        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

        def delete_blobs(self, *names: str, **settings: Any) -> list[Any]:
            asked.append(len(names))
            return [SimpleNamespace(status_code=500), *self._client.delete_blobs(*names[1:][::-1], **settings)][::-1]

    s3dlio.put_many((f"{container}/{number}", b"x") for number in range(5))
    with monkeypatch.context() as patch:
        patch.setattr(azure, "container_client", lambda *where: Mixed(client(*where)))
        s3dlio.delete(container, recursive=True)
    assert asked == [5]
    assert s3dlio.list(container) == []
