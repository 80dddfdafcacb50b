"""What may happen to a request on its way to an S3 server and to the answer, and what a server that lies does."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from azure_operations import azure_operation

import s3dlio


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
        if self.method == "PUT" and any(name.lower() == "x-amz-copy-source" for name, _ in self.headers):
            return "CopyObject"
        return {"GET": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject", "HEAD": "HeadObject"}[self.method]

    def replace_body(self, body: bytes) -> None:
        """Another body, and a length and no checksum that fit it: for a server that is to believe it."""
        wrong = ("content-length", "x-amz-checksum-crc32c", "x-amz-mp-object-size")
        kept = [(name, value) for name, value in self.headers if name.lower() not in wrong]
        self.headers, self.body = [*kept, ("Content-Length", str(len(body)))], body

    def head(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join(lines).encode("latin-1")


@dataclass
class Response:
    head: bytes
    body: bytes


@dataclass
class Exchange:
    """A request that something happens to: ``forward`` asks the server, with ``head`` in place of the request's own;
    ``at`` says where in the bytes it happens, from 0 to 1."""

    request: Request
    client: socket.socket
    at: float
    forward: Callable[..., Response]


Action = Callable[[Exchange], Response | None]

ETAG = '"0123456789abcdef0123456789abcdef"'
COMPLETED = f"<CompleteMultipartUploadResult><ETag>{ETAG}</ETag></CompleteMultipartUploadResult>"
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>by the proxy</Message></Error>'


class BrokenError(Exception):
    """The connection is to be reset."""


def _answering(status: str, body: str = "", headers: str = "") -> Action:
    """Without asking the server."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return lambda exchange: Response(head.encode(), body.encode())


def _flipped(data: bytes, at: float) -> bytes:
    if not data:
        return data
    byte, bit = divmod(int(at * len(data) * 8), 8)
    return data[:byte] + bytes([data[byte] ^ (1 << bit)]) + data[byte + 1 :]


def _truncated_head(exchange: Exchange) -> None:
    response = exchange.forward(exchange.request)
    exchange.client.sendall(response.head[: int(len(response.head) * exchange.at)])


def _truncated_body(exchange: Exchange) -> None:
    response = exchange.forward(exchange.request)
    exchange.client.sendall(response.head + response.body[: int(len(response.body) * exchange.at)])


def _reset_in_response(exchange: Exchange) -> None:
    _truncated_body(exchange)
    time.sleep(0.01)  # else the reset overtakes the bytes
    raise BrokenError


def _lost_acknowledgement(exchange: Exchange) -> None:
    exchange.forward(exchange.request)
    raise BrokenError


def _flip_in_request(exchange: Exchange) -> Response:
    exchange.request.body = _flipped(exchange.request.body, exchange.at)
    return exchange.forward(exchange.request)


def _flip_in_request_head(exchange: Exchange) -> Response:
    return exchange.forward(exchange.request, _flipped(exchange.request.head(), exchange.at))


def _flip_in_response(exchange: Exchange) -> Response:
    response = exchange.forward(exchange.request)
    return Response(response.head, _flipped(response.body, exchange.at))


def _flip_in_response_head(exchange: Exchange) -> Response:
    response = exchange.forward(exchange.request)
    return Response(_flipped(response.head, exchange.at), response.body)


def _half_an_answer(exchange: Exchange) -> Response:
    """Complete by its own account."""
    response = exchange.forward(exchange.request)

    def halve(found: re.Match[bytes]) -> bytes:
        return b"Content-Length: %d" % (int(found[1]) // 2)

    head = re.sub(rb"(?i)content-length: *(\d+)", halve, response.head)
    return Response(head, response.body[: len(response.body) // 2])


def _stall(exchange: Exchange) -> None:
    exchange.client.settimeout(None)
    exchange.client.recv(1)  # until the client gives up


def _stall_in_response(exchange: Exchange) -> None:
    _truncated_body(exchange)
    _stall(exchange)


def _stored_half(exchange: Exchange) -> Response:
    """A lie, of servers that check nothing."""
    request = exchange.request
    request.replace_body(request.body[: len(request.body) // 2])
    return exchange.forward(request)


def _stored_half_and_tells(exchange: Exchange) -> Response:
    """A lie that the answer gives away: it has the checksum of what is stored."""
    response = _stored_half(exchange)
    crc = base64.b64encode(s3dlio.crc32c(exchange.request.body).to_bytes(4, "big"))
    return Response(response.head[:-2] + b"x-amz-checksum-crc32c: " + crc + b"\r\n\r\n", response.body)


def _part_left_out(exchange: Exchange) -> Response:
    """A lie, of servers that check nothing."""
    request = exchange.request
    parts = re.findall(rb"<Part>.*?</Part>", request.body, re.DOTALL)
    request.replace_body(request.body.replace(parts[len(parts) // 2], b""))
    return exchange.forward(request)


def _knows_no_checksums(exchange: Exchange) -> Response:
    """As stores that are older than these headers."""
    if any(name.lower().startswith("x-amz-checksum-") for name, _ in exchange.request.headers):
        return Response(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n", b"")
    return exchange.forward(exchange.request)


ACTIONS: dict[str, Action] = {
    "500": _answering("500 Internal Server Error", ERROR.format("InternalError")),
    "503 SlowDown": _answering("503 Slow Down", ERROR.format("SlowDown")),
    "200 with an error": _answering("200 OK", ERROR.format("InternalError")),
    "200 with nothing": _answering("200 OK"),
    # With a FIN.
    "truncated head": _truncated_head,
    "truncated body": _truncated_body,
    "reset in response": _reset_in_response,
    "lost acknowledgement": _lost_acknowledgement,
    "flip in request": _flip_in_request,
    "flip in request head": _flip_in_request_head,
    "flip in response": _flip_in_response,
    "flip in response head": _flip_in_response_head,
    "half an answer": _half_an_answer,
    "stall": _stall,
    "stall in response": _stall_in_response,
    # A lie: what looks stored is not there.
    "not stored": _answering("200 OK", COMPLETED, f"ETag: {ETAG}\r\n"),
    # The same in the words of Azure.
    "created nothing": _answering("201 Created", headers='ETag: "0x0123456789ABCDE"\r\n'),
    "stored half": _stored_half,
    "stored half, and tells": _stored_half_and_tells,
    "part left out": _part_left_out,
    "knows no checksums": _knows_no_checksums,
}
