"""Whole jobs that are broken off, by Ctrl-C or by asyncio, while the store does not answer: soon, and with nothing
stored."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from live_process import interrupt
from proxy import Fault, Proxy

import s3dlio
from s3dlio import aio
from s3dlio._stores import azure as azure_store

LARGE = bytes(40 << 20)
# Of a wait that would last for 30 s.
SOON = 1.5


@pytest.fixture
def proxy(s3: str, seaweed: servers.Server) -> Iterator[Proxy]:
    with Proxy(seaweed.url) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url)
        yield proxy
        servers.disconnect()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Twenty files, of which each takes several parts."""
    (tmp_path / "from").mkdir()
    for number in range(20):
        with (tmp_path / "from" / str(number)).open("wb") as file:
            file.truncate(20 << 20)
    return tmp_path


def stop(proxy: Proxy, operation: str) -> None:
    """From now on the store does not answer this."""
    proxy.faults = [Fault("stall", operation, 1000)]


def check_nothing_is_left(proxy: Proxy, base: str, most_uploads: int = 0) -> None:
    proxy.faults = []
    assert s3dlio.list(base) == []
    deadline = time.monotonic() + 5
    while len(s3dlio.list_stale_uploads(base)) > most_uploads and time.monotonic() < deadline:
        time.sleep(0.1)  # the last requests to abort are under way
    assert len(s3dlio.list_stale_uploads(base)) <= most_uploads
    assert not [thread for thread in threading.enumerate() if thread.name == "s3dlio-many"]


def cancel(begin: Callable[[], Coroutine[Any, Any, object]], is_time: Callable[[], bool] = lambda: True) -> None:
    """A cancellation after half a second, and not before it is time."""

    async def main() -> None:
        task = asyncio.ensure_future(begin())
        await asyncio.sleep(0.5)
        deadline = time.monotonic() + 10
        while not is_time() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert is_time()
        began = time.monotonic()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < SOON

    asyncio.run(main())


def test_large_put(s3: str, proxy: Proxy) -> None:
    base = f"{s3}/cancelled-put"
    s3dlio.put(f"{base}-before", b"")
    stop(proxy, "UploadPart")
    interrupt(lambda: s3dlio.put(f"{base}/a", LARGE))
    check_nothing_is_left(proxy, f"{base}/")
    stop(proxy, "UploadPart")
    cancel(lambda: aio.put(f"{base}/b", LARGE))
    check_nothing_is_left(proxy, f"{base}/")
    stop(proxy, "CompleteMultipartUpload")
    cancel(lambda: aio.put(f"{base}/b", LARGE))
    check_nothing_is_left(proxy, f"{base}/")
    stop(proxy, "PutObject")
    cancel(lambda: aio.put(f"{base}/c", LARGE, compression="zstd"))
    check_nothing_is_left(proxy, f"{base}/")


def test_put_many_of_large_ones(s3: str, proxy: Proxy) -> None:
    base = f"{s3}/cancelled-many"
    s3dlio.put(f"{base}-before", b"")
    stop(proxy, "UploadPart")
    interrupt(lambda: s3dlio.put_many([(f"{base}/{number}", LARGE) for number in range(5)]))
    check_nothing_is_left(proxy, f"{base}/")
    stop(proxy, "UploadPart")
    cancel(lambda: aio.put_many([(f"{base}/{number}", LARGE) for number in range(5)]))
    check_nothing_is_left(proxy, f"{base}/")


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_put_many_of_large_ones_at_any_stage(s3: str, proxy: Proxy, operation: str) -> None:
    # The stream of each is written within a task, which waits where another one listens for Ctrl-C.
    base = f"{s3}/cancelled-stage"
    s3dlio.put(f"{base}-before", b"")
    stop(proxy, operation)
    interrupt(
        lambda: s3dlio.put_many([(f"{base}/{number}", LARGE) for number in range(3)], max_in_flight=2, in_flight=1)
    )
    check_nothing_is_left(proxy, f"{base}/", most_uploads=1 if operation == "CreateMultipartUpload" else 0)


def test_upload(s3: str, proxy: Proxy, files: Path) -> None:
    base = f"{s3}/cancelled-upload"
    s3dlio.put(f"{base}-before", b"")
    stop(proxy, "UploadPart")
    interrupt(lambda: s3dlio.upload(files / "from", f"{base}/"))
    check_nothing_is_left(proxy, f"{base}/")
    stop(proxy, "UploadPart")
    cancel(lambda: aio.upload(files / "from", f"{base}/"))
    check_nothing_is_left(proxy, f"{base}/")


def test_download(s3: str, proxy: Proxy, files: Path) -> None:
    base = f"{s3}/cancelled-download"
    for number in range(20):
        s3dlio.put(f"{base}/{number}", bytes(100_000))
    to = files / "to"
    stop(proxy, "GetObject")
    interrupt(lambda: s3dlio.download(base, to))
    cancel(lambda: aio.download(base, to))
    assert not to.exists() or list(to.iterdir()) == []
    s3dlio.delete(base, recursive=True)
    check_nothing_is_left(proxy, base)


def test_copy(s3: str, proxy: Proxy) -> None:
    base = f"{s3}/cancelled-copy"
    s3dlio.put("memory://cancelled/large", LARGE)
    s3dlio.put(f"{base}-before", b"")
    stop(proxy, "UploadPart")
    interrupt(lambda: s3dlio.copy("memory://cancelled/large", f"{base}/a"))
    cancel(lambda: aio.copy("memory://cancelled/large", f"{base}/a"))
    stop(proxy, "CopyObject")
    cancel(lambda: aio.copy(f"{base}-before", f"{base}/a"))
    check_nothing_is_left(proxy, f"{base}/")
    s3dlio.delete("memory://cancelled/large")


def test_job_that_waits_for_a_thread_never_begins(s3: str, proxy: Proxy) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        busy = [loop.run_in_executor(None, release.wait, 20) for _ in range(100)]
        task = asyncio.ensure_future(aio.put(f"{s3}/cancelled-early", LARGE))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1)
        release.set()
        await asyncio.gather(*busy)

    asyncio.run(main())
    assert not s3dlio.exists(f"{s3}/cancelled-early")


def test_file_that_is_written(disk_path: Path) -> None:
    data = bytes(64 << 20)
    ended = 0

    async def main(seconds: float) -> None:
        nonlocal ended
        task = asyncio.ensure_future(aio.put_many((f"file://{disk_path}/{number}", data) for number in range(4)))
        await asyncio.sleep(seconds)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            ended += 1

    for number in range(10):
        asyncio.run(main(0.005 * number))
        for path in disk_path.iterdir():  # all of it, and nothing hidden
            assert path.stat().st_size == len(data)
            path.unlink()
    assert ended >= 5


def test_jobs_of_azure(azure: str, azurite: servers.Server, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread that waited for an answer went on until its connection was given up as stalled.
    monkeypatch.setattr(azure_store, "WHOLE_NBYTES", 1 << 18)  # for blocks that are through soon
    base = f"{azure}/cancelled"
    for number in range(4):
        s3dlio.put(f"{azure}/there/{number}", bytes(100_000))
    s3dlio.put(f"{azure}/there/large", LARGE)
    many = [(f"{base}/{number}", b"x") for number in range(4)]
    to = files / "to"
    # Else the checksums of 300 MiB are computed before the last one of them is asked for.
    small = s3dlio.WriterOptions(buffer_size=1 << 20, in_flight=2)
    jobs: dict[str, list[tuple[Callable[[], object], Callable[[], Coroutine[Any, Any, object]]]]] = {
        "Put Block": [
            (lambda: s3dlio.put(f"{base}/a", LARGE), lambda: aio.put(f"{base}/a", LARGE)),
            (
                lambda: s3dlio.upload(files / "from", f"{base}/", options=small),
                lambda: aio.upload(files / "from", f"{base}/", options=small),
            ),
            (
                lambda: s3dlio.put_many([(f"{base}/{number}", LARGE) for number in range(3)]),
                lambda: aio.put_many([(f"{base}/{number}", LARGE) for number in range(3)]),
            ),
        ],
        "Put Block List": [
            (
                lambda: s3dlio.put(f"{base}/a", bytes(1 << 20), buffer_size=1 << 18),
                lambda: aio.put(f"{base}/a", bytes(1 << 20), buffer_size=1 << 18),
            )
        ],
        "Put Blob": [
            (lambda: s3dlio.put(f"{base}/a", b"x"), lambda: aio.put(f"{base}/a", b"x")),
            (lambda: s3dlio.put_many(many), lambda: aio.put_many(many)),
        ],
        "Get Blob": [
            (lambda: s3dlio.get(f"{azure}/there/1"), lambda: aio.get(f"{azure}/there/1")),
            (lambda: s3dlio.get(f"{azure}/there/large"), lambda: aio.get(f"{azure}/there/large")),
            (lambda: s3dlio.download(f"{azure}/there", to), lambda: aio.download(f"{azure}/there", to)),
        ],
        "Get Blob Properties": [(lambda: s3dlio.stat(f"{azure}/there/1"), lambda: aio.stat(f"{azure}/there/1"))],
        "Copy Blob": [
            (
                lambda: s3dlio.copy(f"{azure}/there/1", f"{base}/a"),
                lambda: aio.copy(f"{azure}/there/1", f"{base}/a"),
            )
        ],
        "List Blobs": [(lambda: s3dlio.list(azure), lambda: aio.list(azure))],
    }
    with Proxy(azurite.url) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url)
        for operation, pairs in jobs.items():
            for work, begin in pairs:
                stop(proxy, operation)
                interrupt(work, lambda: proxy.faults[0].fired > 0)
                stop(proxy, operation)
                cancel(begin, lambda: proxy.faults[0].fired > 0)
                assert not [thread for thread in threading.enumerate() if thread.name == "s3dlio-many"], operation
        proxy.faults = []
        assert s3dlio.list(base) == []
        assert not to.exists() or list(to.iterdir()) == []
    servers.disconnect_azure()
