"""The heads and bodies of HTTP/1.1 answers, good ones and others."""

from __future__ import annotations

import pytest

from s3dlio._stores.s3_answer import UNTIL_END, Framing, parse_head

OK = b"HTTP/1.1 200 OK\r\n"


def test_head_is_taken_when_it_is_all_there() -> None:
    come = bytearray(OK + b'ETag: "e"\r\nContent-Length:5\r\nX-Odd: caf\xe9 \r\n\r\nhello')
    for end in range(come.find(b"hello")):
        assert parse_head(come[:end]) is None
    looked = parse_head(come, takes=False)
    head = parse_head(come)
    assert head == looked
    assert head is not None
    assert (head.status, head.length, head.keeps_alive) == (200, 5, True)
    assert dict(head.headers) == {"etag": '"e"', "content-length": "5", "x-odd": "caf\xe9"}
    assert come == b"hello"


@pytest.mark.parametrize(
    ("text", "length", "keeps_alive"),
    [
        (OK + b"\r\n", UNTIL_END, True),
        (b"HTTP/1.0 200\r\nContent-Length: 0\r\n\r\n", 0, False),
        (OK + b"Connection: x, Close\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 3, False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", None, True),
        (OK + b"Transfer-Encoding: Chunked\r\n\r\n", None, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 0, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 0, True),
        (OK + b"X: y\r\n" * 500 + b"Content-Length: 1\r\n\r\n", 1, True),
    ],
)
def test_length_of_the_body(text: bytes, length: int | None, keeps_alive: bool) -> None:
    head = parse_head(bytearray(text))
    assert head is not None
    assert (head.length, head.keeps_alive) == (length, keeps_alive)


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b" folded: x\r\n\r\n",
        OK + b"a b: x\r\n\r\n",
        OK + b"Content-Length: five\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1_0\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        b"x" * (65 << 10),
        OK + b"X: " + b"y" * (65 << 10) + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_refused(text: bytes) -> None:
    with pytest.raises(ConnectionError, match="makes no sense"):
        parse_head(bytearray(text))


def read(body: bytes, most: int) -> tuple[bytes, bytes]:
    """The content of a chunked body, taken in pieces of so many bytes, and what is left after it."""
    come = bytearray(body)

    def line() -> bytes:
        end = come.index(b"\r\n")
        found = bytes(come[:end])
        del come[: end + 2]
        return found

    head = parse_head(bytearray(OK + b"Transfer-Encoding: chunked\r\n\r\n"))
    assert head is not None
    framing, content = Framing(head, line), b""
    while not framing.is_over:
        count = min(most, framing.room, len(come))
        assert count > 0
        content += come[:count]
        del come[:count]
        framing.took(count)
    return content, bytes(come)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_chunks_are_put_together(most: int) -> None:
    body = b"5;name=value\r\nhello\r\nB \r\n wide world\r\n0\r\nTrailer: x\r\n\r\nnext"
    assert read(body, most) == (b"hello wide world", b"next")


@pytest.mark.parametrize(
    "body", [b"x\r\n", b"-5\r\nhello\r\n", b"2\r\nhello\r\n0\r\n\r\n", b"\r\n", b"1" * 17 + b"\r\n"]
)
def test_chunks_that_cannot_be_are_refused(body: bytes) -> None:
    with pytest.raises(ConnectionError, match="chunk"):
        read(body, 2)
