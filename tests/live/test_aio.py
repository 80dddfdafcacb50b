"""What asyncio promises, on a real S3 server: no thread for each request, and cancellations that hold."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest
import servers
from proxy import Fault, Proxy

import s3dlio
from s3dlio import aio


def test_requests_wait_without_threads(s3: str) -> None:
    data = os.urandom(1000)
    s3dlio.put(f"{s3}/aio/object", data)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, threading.active_count())
            await asyncio.sleep(0.001)

    async def main() -> None:
        watching = asyncio.create_task(watch())
        got = await asyncio.gather(*(aio.get(f"{s3}/aio/object") for _ in range(500)))
        assert got == [data] * 500
        await aio.get_many([f"{s3}/aio/object"] * 500, max_in_flight=200)
        await aio.put_many((f"{s3}/aio/{number}", data) for number in range(100))
        assert len(await aio.list(f"{s3}/aio")) == 101
        watching.cancel()

    before = threading.active_count()
    asyncio.run(main())
    # awscrt's own do not count; the clock that looks after the requests does.
    assert most <= before + 1


def test_cancelled_request_is_broken_off_at_once(s3: str, seaweed: servers.Server) -> None:
    async def main(uri: str) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(aio.get(uri), 0.3)
        proxy.faults = []
        assert await aio.get(uri) == b"content"

    s3dlio.put(f"{s3}/cancelled", b"content")
    with Proxy(seaweed.url) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url)
        proxy.faults = [Fault("stall", "GetObject", 1000)]
        began = time.monotonic()
        asyncio.run(main(f"{s3}/cancelled"))
        assert time.monotonic() - began < 5
        servers.disconnect()


def test_failure_carries_what_the_store_said(s3: str) -> None:
    with pytest.raises(s3dlio.NotFoundError) as caught:
        asyncio.run(aio.get(f"{s3}/not/there"))
    assert caught.value.status == 404
    assert caught.value.code == "NoSuchKey"
