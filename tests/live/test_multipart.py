"""MultipartUploadWriter on a real server."""

from __future__ import annotations

import random

import pytest
import servers
from proxy import wait_until

import s3dlio
from s3dlio import MultipartUploadWriter

PART = 5 << 20


def test_close_tells_what_is_stored(s3: str) -> None:
    data = random.Random(1).randbytes(2 * PART + 7)
    with MultipartUploadWriter("tests", "multi/a", part_size=PART, max_in_flight=2) as writer:
        writer.write(data[:100])
        writer.write(memoryview(data)[100:])
        writer.flush()
        result = writer.close()
    assert result["total_bytes"] == len(data)
    assert result["parts"] == 3
    assert result["checksum"] == f"crc32c:{s3dlio.crc32c(data):08x}"
    assert result["etag"]
    assert result["etag"] == s3dlio.stat(f"{s3}/multi/a")["etag"]
    assert result["elapsed"] > 0
    assert writer.close() == result
    assert s3dlio.get(result["uri"]) == data
    with pytest.raises(s3dlio.ClosedError):
        writer.write(b"more")


def test_no_more_is_committed_than_was_reserved(s3: str) -> None:
    with MultipartUploadWriter("tests", "multi/strict", part_size=PART) as writer:
        with pytest.raises(s3dlio.InvalidInputError, match="5 bytes, and 0 are reserved"):
            writer.commit(5)
        writer.reserve(10)[:] = b"0123456789"
        with pytest.raises(s3dlio.InvalidInputError, match="15 bytes, and 10 are reserved"):
            writer.commit(15)
        writer.commit(4)
        with pytest.raises(s3dlio.InvalidInputError):  # once
            writer.commit(4)
        for given_up in (lambda: writer.write(b"XY"), writer.flush):
            writer.reserve(4)[:] = b"abcd"
            given_up()
            with pytest.raises(s3dlio.InvalidInputError):
                writer.commit(4)
        writer.commit(0)
        result = writer.close()
    assert s3dlio.get(result["uri"]) == b"0123XY"
    assert result["etag"] == s3dlio.stat(result["uri"])["etag"]


def test_bytes_may_be_made_in_the_part_itself(s3: str) -> None:
    data = random.Random(2).randbytes(2 * PART + 12345)
    writer = MultipartUploadWriter.from_uri(f"{s3}/multi/reserved", part_size=PART)
    done = 0
    while done < len(data):
        room = writer.reserve(min(700_001, len(data) - done))
        assert 1 <= len(room) <= 700_001
        assert not room.readonly
        room[:] = data[done : done + len(room)]
        done += len(room)
        writer.commit(len(room))
        if done < len(data) - 10:
            writer.write(data[done : done + 10])
            done += 10
    result = writer.close()
    assert result["total_bytes"] == len(data)
    assert s3dlio.get(f"{s3}/multi/reserved") == data


def test_small_object_is_one_put(s3: str) -> None:
    with MultipartUploadWriter("tests", "multi/small", content_type="application/json") as writer:
        writer.write(b"{}")
    assert writer.close()["parts"] == 1
    assert s3dlio.get(f"{s3}/multi/small") == b"{}"


@pytest.mark.parametrize("abort_on_drop", [True, False])
def test_dropped_writer_gives_the_parts_back_unless_told_otherwise(s3: str, abort_on_drop: bool) -> None:
    uri = f"{s3}/multi/dropped-{abort_on_drop}"
    writer = MultipartUploadWriter.from_uri(uri, part_size=PART, abort_on_drop=abort_on_drop)
    writer.write(bytes(2 * PART + 1))
    writer.flush()
    with pytest.warns(ResourceWarning, match="dropped unfinished"):
        del writer
    if abort_on_drop:
        assert wait_until(lambda: s3dlio.list_stale_uploads(uri) == [], 10)
    else:
        assert len(s3dlio.abort_stale_uploads(uri, older_than=0)) == 1
    assert not s3dlio.exists(uri)


def test_exception_or_abort_leaves_nothing(s3: str) -> None:
    uri = f"{s3}/multi/aborted"
    with pytest.raises(ZeroDivisionError), MultipartUploadWriter.from_uri(uri, part_size=PART) as writer:
        writer.write(bytes(2 * PART))
        raise ZeroDivisionError
    with MultipartUploadWriter.from_uri(uri, part_size=PART, abort_on_drop=False) as writer:
        writer.write(bytes(2 * PART))
        writer.abort()
    with pytest.raises(s3dlio.ClosedError):
        writer.close()
    assert s3dlio.list_stale_uploads(uri) == []
    assert not s3dlio.exists(uri)


def test_failed_part_is_told_by_flush_and_every_later_call(s3: str) -> None:
    writer = MultipartUploadWriter.from_uri(f"{s3}/multi/failed", part_size=PART)
    writer.write(bytes(PART + 1))
    upload = s3dlio.list_stale_uploads(f"{s3}/multi/failed")
    writer.write(bytes(PART - 1))
    (upload,) = s3dlio.list_stale_uploads(f"{s3}/multi/failed")
    s3dlio.abort_stale_uploads(f"{s3}/multi/failed", older_than=0)
    with pytest.raises(s3dlio.S3dlioError):
        for _ in range(3):
            writer.write(bytes(PART))
        writer.flush()
        writer.close()
    with pytest.raises(s3dlio.S3dlioError):
        writer.close()
    writer.abort()
    assert not s3dlio.exists(upload.uri)


def test_bad_arguments_are_refused_before_anything_is_sent(s3: str) -> None:
    (port,) = servers.free_ports(1)
    s3dlio.configure_s3(endpoint_url=f"http://127.0.0.1:{port}", retries=0)
    for arguments in (
        {"bucket": "", "key": "a"},
        {"bucket": "tests", "key": ""},
        {"bucket": "tests", "key": "a", "part_size": PART - 1},
        {"bucket": "tests", "key": "a", "part_size": 65 << 20},
        {"bucket": "tests", "key": "a", "max_in_flight": 0},
        {"bucket": "tests", "key": "a", "content_type": "text/plain\r\nx-amz-acl: public-read"},
    ):
        with pytest.raises(s3dlio.InvalidInputError):
            MultipartUploadWriter(**arguments)  # type: ignore[arg-type]
    with pytest.raises(s3dlio.InvalidInputError, match="no s3 URI"):
        MultipartUploadWriter.from_uri("file:///tmp/a")
    writer = MultipartUploadWriter("tests", "a")
    for size in (0, -1):
        with pytest.raises(s3dlio.InvalidInputError):
            writer.reserve(size)
    with pytest.raises(s3dlio.InvalidInputError):
        writer.commit(1)
    writer.abort()
