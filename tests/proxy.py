"""A proxy between a client and a server of S3 or Azure that breaks what passes through it.

A `Fault` says which requests it is for and what happens to them; each tells afterwards how often it has fired.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from azure_operations import azure_operation


@dataclass
class Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def operation(self) -> str:
        """The name of the operation, of S3 or, as the header tells, of Azure."""
        if any(name.lower() == "x-ms-version" for name, _ in self.headers):
            return azure_operation(self.method, self.target, self.headers)
        parts = urlsplit(self.target)
        query = parse_qs(parts.query, keep_blank_values=True)
        has_key = parts.path.strip("/").count("/") > 0
        if "uploads" in query:
            return "CreateMultipartUpload" if self.method == "POST" else "ListMultipartUploads"
        if "uploadId" in query:
            return {
                "PUT": "UploadPart",
                "POST": "CompleteMultipartUpload",
                "DELETE": "AbortMultipartUpload",
                "GET": "ListParts",
            }[self.method]
        if "delete" in query:
            return "DeleteObjects"
        if not has_key:
            return {"GET": "ListObjectsV2", "PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket"}[
                self.method
            ]
        return {"GET": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject", "HEAD": "HeadObject"}[self.method]


@dataclass
class Response:
    head: bytes
    body: bytes


@dataclass
class Fault:
    """``kind`` happens to the first ``times`` requests of ``operation`` after ``skip`` others."""

    kind: str
    operation: str
    times: int = 1
    skip: int = 0
    fired: int = field(default=0, compare=False)

    def takes(self, request: Request) -> bool:
        if request.operation != self.operation:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.fired >= self.times:
            return False
        self.fired += 1
        return True


ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>by the proxy</Message></Error>'


def _answer(status: str, body: str = "", headers: str = "") -> Response:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return Response(head.encode(), body.encode())


class _BrokenError(Exception):
    """The connection is to be reset."""


class Proxy:
    """Listens on ``url`` for as long as the ``with`` block lasts."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = urlsplit(upstream)
        self._tls = tls
        self.faults: list[Fault] = []
        # The share of requests that one of these kinds happens to, at random.
        self.chance = 0.0
        self.kinds: tuple[str, ...] = ()
        self.random = random.Random(0)
        self.requests: list[str] = []
        self.fired = 0
        self._stall = 3600.0
        # The loop alone would not keep a connection whose client has gone, and its end is not to come from the garbage
        # collector in some other thread.
        self._open: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Proxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self._server = started.result(10)
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._open:
                writer.transport.abort()
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def _kind_for(self, request: Request) -> str | None:
        for fault in self.faults:
            if fault.takes(request):
                self.fired += 1
                return fault.kind
        if self.kinds and self.random.random() < self.chance:
            self.fired += 1
            return self.random.choice(self.kinds)
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except _BrokenError:
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self._open.discard(writer)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = int({name.lower(): value for name, value in headers}.get("content-length", "0"))
        request = Request(method, target, headers, b"")
        self.requests.append(request.operation)
        kind = self._kind_for(request)
        if kind == "reset in mid body":
            await reader.readexactly(length // 2)
            raise _BrokenError
        request.body = await reader.readexactly(length)
        action: Callable[[Request, asyncio.StreamWriter], Any] | None = _ACTIONS.get(kind or "")
        if action is None:
            response = await self.forward(request)
        else:
            response = await action(self, request, writer)
        if response is None:
            return False
        writer.write(response.head + response.body)
        await writer.drain()
        return True

    async def forward(self, request: Request) -> Response:
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port, limit=1 << 20)
        try:
            lines = [f"{request.method} {request.target} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in request.headers]
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + request.body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.read()
        finally:
            writer.close()
        kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        if b"transfer-encoding: chunked" in head.lower():
            body = _unchunked(body)
            kept = [line for line in kept if not line.lower().startswith(b"transfer-encoding:")]
            kept.insert(1, b"Content-Length: %d" % len(body))
        return Response(b"\r\n".join(kept), body)


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if length == 0:
            break
        whole += rest[:length]
        body = rest[length + 2 :]
    return whole


def _flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :] if data else data


async def _status_500(proxy: Proxy, request: Request, writer: Any) -> Response:
    return _answer("500 Internal Server Error", ERROR.format("InternalError"))


async def _slow_down(proxy: Proxy, request: Request, writer: Any) -> Response:
    return _answer("503 Slow Down", ERROR.format("SlowDown"))


async def _error_in_200(proxy: Proxy, request: Request, writer: Any) -> Response:
    return _answer("200 OK", ERROR.format("InternalError"))


async def _empty_200(proxy: Proxy, request: Request, writer: Any) -> Response:
    return _answer("200 OK")


async def _truncated_head(proxy: Proxy, request: Request, writer: Any) -> None:
    response = await proxy.forward(request)
    writer.write(response.head[: len(response.head) // 2])
    await writer.drain()


async def _truncated_body(proxy: Proxy, request: Request, writer: Any) -> None:
    response = await proxy.forward(request)
    writer.write(response.head + response.body[: len(response.body) // 2])
    await writer.drain()


async def _reset_in_response(proxy: Proxy, request: Request, writer: Any) -> None:
    await _truncated_body(proxy, request, writer)
    await asyncio.sleep(0.01)  # else the reset overtakes the bytes
    raise _BrokenError


async def _lost_acknowledgement(proxy: Proxy, request: Request, writer: Any) -> None:
    await proxy.forward(request)
    raise _BrokenError


async def _flip_in_request(proxy: Proxy, request: Request, writer: Any) -> Response:
    request.body = _flipped(request.body)
    return await proxy.forward(request)


async def _flip_in_response(proxy: Proxy, request: Request, writer: Any) -> Response:
    response = await proxy.forward(request)
    return Response(response.head, _flipped(response.body))


async def _stall(proxy: Proxy, request: Request, writer: Any) -> None:
    await asyncio.sleep(proxy._stall)


async def _not_stored(proxy: Proxy, request: Request, writer: Any) -> Response:
    """A lie: what looks stored is not there."""
    return _answer("200 OK", headers='ETag: "0123456789abcdef0123456789abcdef"\r\n')


async def _created_nothing(proxy: Proxy, request: Request, writer: Any) -> Response:
    """The same, in the words of Azure."""
    return _answer("201 Created", headers='ETag: "0x0123456789ABCDE"\r\n')


async def _knows_no_checksums(proxy: Proxy, request: Request, writer: Any) -> Response:
    if any(name.lower().startswith("x-amz-checksum-") for name, _ in request.headers):
        return _answer("501 Not Implemented", ERROR.format("NotImplemented"))
    return await proxy.forward(request)


_ACTIONS: dict[str, Any] = {
    "500": _status_500,
    "503 SlowDown": _slow_down,
    "200 with an error": _error_in_200,
    "200 with nothing": _empty_200,
    "truncated head": _truncated_head,
    "truncated body": _truncated_body,
    "reset in response": _reset_in_response,
    "lost acknowledgement": _lost_acknowledgement,
    "flip in request": _flip_in_request,
    "flip in response": _flip_in_response,
    "stall": _stall,
    "not stored": _not_stored,
    "created nothing": _created_nothing,
    "knows no checksums": _knows_no_checksums,
}

KINDS = ("reset in mid body", *_ACTIONS)


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
