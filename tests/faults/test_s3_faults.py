"""What a network and a server may do to S3 requests: the right bytes, or an error in bounded time, and nothing torn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import harness
import pytest
import servers
from proxy import Fault, Proxy

import s3dlio
from s3dlio._stores import s3_client

MIB = 1 << 20
PART = 5 * MIB
OLD = b"what was there before"

# What happens to requests that carry the object, and to those that ask for something.
TO_REQUESTS = ("reset in mid body", "flip in request")
TO_ANSWERS = (
    "500",
    "503 SlowDown",
    "200 with an error",
    "200 with nothing",
    "truncated head",
    "truncated body",
    "reset in response",
    "lost acknowledgement",
    "stall",
)


@pytest.fixture
def proxy(s3: str, seaweed: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(s3_client, "LEAST_RATE", 1 << 30)  # so that a stall is one after 0.7 s
    with Proxy(seaweed.url) as between:
        s3dlio.configure_s3(endpoint_url=between.url, retries=3, backoff=0.02, stall_timeout=0.7, operation_timeout=20)
        yield between
        between.faults = []
        between.chance = 0.0
        servers.disconnect()


def put(uri: str, data: bytes) -> None:
    s3dlio.put(uri, data)


def stream(uri: str, data: bytes) -> None:
    with s3dlio.open_writer(uri, buffer_size=PART, in_flight=2) as writer:
        for start in range(0, len(data), MIB):
            writer.write_chunk(data[start : start + MIB])


WRITES: dict[str, tuple[Callable[[str, bytes], None], int, tuple[str, ...]]] = {
    "put": (put, 100_000, ("PutObject",)),
    "stream of one part": (stream, 100_000, ("PutObject", "HeadObject")),
    "stream of three": (
        stream,
        2 * PART + 1000,
        ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject"),
    ),
}


def cases() -> Iterator[tuple[str, str, str, int]]:
    for name, (_, _, operations) in WRITES.items():
        for operation in operations:
            carries = operation in ("PutObject", "UploadPart", "CompleteMultipartUpload")
            for kind in (TO_REQUESTS if carries else ()) + TO_ANSWERS:
                for times in (1, 1000):
                    yield name, operation, kind, times


def attempt(write: Callable[[str, bytes], None], uri: str, data: bytes) -> tuple[s3dlio.S3dlioError | None, float]:
    began = time.monotonic()
    try:
        write(uri, data)
    except s3dlio.S3dlioError as error:
        return error, time.monotonic() - began
    return None, time.monotonic() - began


def test_faults_of_writing_are_overcome_or_told(s3: str, proxy: Proxy, figure: Callable[[str], None]) -> None:
    counts = {"right": 0, "loud": 0, "stored although told otherwise": 0}
    for number, (name, operation, kind, times) in enumerate(cases()):
        write, size, _ = WRITES[name]
        case = f"{name}, {operation}: {kind} x {times}"
        uri = f"{s3}/faults/{number}"
        proxy.faults = []
        s3dlio.put(uri, OLD)
        data = random.Random(number).randbytes(size)
        fault = Fault(kind, operation, times)
        proxy.faults = [fault]
        error, seconds = attempt(write, uri, data)
        proxy.faults = []
        assert fault.fired > 0, f"{case}: has not fired"
        assert seconds < 15, f"{case}: took {seconds:.1f} s"
        stored = s3dlio.get(uri)
        assert stored in (OLD, data), f"{case}: torn"
        if error is None:
            assert stored == data, f"{case}: lost in silence"
            counts["right"] += 1
        else:
            assert uri in str(error), f"{case}: {error}"
            counts["stored although told otherwise" if stored == data else "loud"] += 1
        left = s3dlio.list_stale_uploads(uri)
        # An answer to Create that never came leaves an upload that nobody knows the name of.
        if operation != "CreateMultipartUpload":
            assert left == [], f"{case}: an upload is left open ({error})"
        for upload in s3dlio.abort_stale_uploads(uri, older_than=0):
            assert upload.uri == uri
    total = sum(counts.values())
    assert total >= 60
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    figure(f"s3 faults of writing: {total} faults, {told}, 0 silent, 0 torn")


def test_faults_of_reading_are_overcome_or_told(s3: str, proxy: Proxy, figure: Callable[[str], None]) -> None:
    data = random.Random(5).randbytes(3 * 8 * MIB + 12345)
    uri = f"{s3}/faults/read"
    s3dlio.put(uri, data, buffer_size=8 * MIB)
    right = loud = 0
    for operation in ("HeadObject", "GetObject"):
        for kind in (*TO_ANSWERS, "flip in response"):
            for times, skip in ((1, 0), (1, 2), (1000, 0)):
                if operation == "HeadObject" and (skip or kind == "flip in response"):
                    continue
                case = f"{operation}: {kind} x {times} after {skip}"
                proxy.faults = [Fault(kind, operation, times, skip)]
                began = time.monotonic()
                try:
                    got = s3dlio.get(uri)
                except s3dlio.S3dlioError as error:
                    assert uri in str(error), case
                    loud += 1
                else:
                    assert got == data, f"{case}: other bytes"
                    right += 1
                assert proxy.faults[0].fired > 0, f"{case}: has not fired"
                assert time.monotonic() - began < 15, f"{case}: took too long"
    proxy.faults = []
    figure(f"s3 faults of reading: {right + loud} faults, {right} right, {loud} loud, 0 silent")


def test_store_that_lies_is_found_out(s3: str, proxy: Proxy) -> None:
    for name in ("stream of one part", "stream of three"):
        write, size, _ = WRITES[name]
        uri = f"{s3}/lies/{size}"
        operation = "PutObject" if name == "stream of one part" else "CompleteMultipartUpload"
        proxy.faults = [Fault("not stored", operation)]
        error, _ = attempt(write, uri, bytes(size))
        assert proxy.faults[0].fired == 1
        assert error is not None, name
        assert not s3dlio.exists(uri)


def test_client_without_checksums_would_lose_in_silence(s3: str, proxy: Proxy) -> None:
    # The planted fault: else the others might prove nothing.
    s3dlio.configure_s3(checksums=False, verify="none")
    data = random.Random(3).randbytes(100_000)
    proxy.faults = [Fault("flip in request", "PutObject")]
    s3dlio.put(f"{s3}/planted", data)
    assert proxy.faults[0].fired == 1
    assert s3dlio.get(f"{s3}/planted") != data
    proxy.faults = [Fault("not stored", "PutObject")]
    stream(f"{s3}/planted-too", data)
    assert not s3dlio.exists(f"{s3}/planted-too")


def test_random_faults_lose_nothing_in_silence(s3: str, proxy: Proxy, figure: Callable[[str], None]) -> None:
    seed = harness.new_seed()
    choose = random.Random(seed)
    proxy.random = random.Random(seed + 1)
    # What flips in an answer to a part of an object only its whole checksum finds, which `get` compares.
    proxy.kinds = (*tuple(kind for kind in TO_REQUESTS + TO_ANSWERS if kind != "stall"), "flip in response")
    proxy.chance = 0.05
    counts = {"stored": 0, "refused": 0, "read": 0, "unread": 0}
    known: dict[str, set[bytes]] = {}
    acknowledged: set[str] = set()
    for number in range(harness.effort(200, 1000)):
        uri = f"{s3}/random/{number % 20}"
        size = choose.choice((0, 1, 1000, 100_000, PART, PART + 1, 2 * PART + 1))
        data = choose.randbytes(size)
        error, _ = attempt(choose.choice((put, stream)), uri, data)
        if error is None:
            acknowledged.add(uri)
            known[uri] = {data}
            counts["stored"] += 1
        else:
            known.setdefault(uri, set()).add(data)
            counts["refused"] += 1
        target = choose.choice(sorted(known))
        try:
            got = s3dlio.get(target)
        except s3dlio.NotFoundError:
            assert target not in acknowledged, f"{target}: lost, seed {seed}"
            counts["unread"] += 1
            continue
        except s3dlio.S3dlioError:
            counts["unread"] += 1
            continue
        assert got in known[target], f"{target}: other bytes, seed {seed}"
        counts["read"] += 1
    proxy.chance = 0.0
    for target in acknowledged:
        assert s3dlio.get(target) in known[target], f"{target}: lost, seed {seed}"
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    figure(f"s3 random faults: {told}, {sum(proxy.fired.values())} faults, 0 silent, seed {seed}")
    assert sum(proxy.fired.values()) > 5
