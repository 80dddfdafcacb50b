"""The operations for asyncio, on every store."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from places import Place

import s3dlio
from s3dlio import aio


def test_objects_come_and_go(place: Place) -> None:
    data = os.urandom(100_000)
    uri = place.uri("deep/object")

    async def main() -> None:
        assert not await aio.exists(uri)
        await aio.put(uri, bytearray(data))
        assert await aio.exists(uri)
        assert await aio.stat(uri) == s3dlio.stat(uri)
        assert await aio.get(uri) == data
        assert await aio.get_range(uri, 1000, 50) == data[1000:1050]
        assert await aio.get_range(uri, 99_990) == data[99_990:]
        assert await aio.copy(uri, place.uri("copy")) == place.uri("copy")
        assert await aio.list(place.base) == [place.uri("copy"), uri]
        assert await aio.list(place.base, recursive=False) == [place.uri("copy"), place.uri("deep/")]
        assert [each async for each in aio.iter_objects(place.base, pattern="^deep")] == [uri]
        await aio.delete(uri)
        assert await aio.list(place.base) == [place.uri("copy")]
        await aio.delete(place.base, recursive=True)

    asyncio.run(main())
    assert s3dlio.list(place.base) == []


def test_large_and_compressed_objects(place: Place) -> None:
    data = os.urandom(17 << 20)

    async def main() -> None:
        await aio.put(place.uri("large"), data)
        assert await aio.get(place.uri("large")) == data
        assert await aio.get_range(place.uri("large"), 5, 9 << 20) == data[5 : 5 + (9 << 20)]
        await aio.put(place.uri("small"), bytes(100_000), compression="zstd")

    asyncio.run(main())
    assert s3dlio.open_reader(place.uri("small.zst"), decompress=True).read() == bytes(100_000)


def test_many_at_once(place: Place) -> None:
    data = {place.uri(str(number)): os.urandom(number) for number in range(200)}

    async def main() -> None:
        await aio.put_many(data.items())
        assert await aio.get_many(reversed(data)) == [(uri, data[uri]) for uri in reversed(data)]
        assert await aio.get_many([]) == []
        with pytest.raises(s3dlio.NotFoundError, match="missing"):
            await aio.get_many([*data, place.uri("missing")])
        with pytest.raises(s3dlio.InvalidInputError, match="max_in_flight"):
            await aio.get_many(data, max_in_flight=0)

    asyncio.run(main())


def test_asynchronous_items_are_taken_one_at_a_time(place: Place) -> None:
    async def items(count: int) -> AsyncIterator[tuple[str, bytes]]:
        for number in range(count):
            await asyncio.sleep(0)
            yield place.uri(str(number)), bytes(number)
        if count == 3:
            raise LookupError("of the caller")

    asyncio.run(aio.put_many(items(100)))
    assert [len(s3dlio.get(place.uri(str(number)))) for number in range(100)] == [*range(100)]
    with pytest.raises(LookupError, match="of the caller"):
        asyncio.run(aio.put_many(items(3)))


def test_failure_breaks_off_asynchronous_items(place: Place) -> None:
    # What had queued for the next item stored it nevertheless, and the error came when the source went on.
    async def items() -> AsyncIterator[tuple[str, bytes]]:
        yield place.uri("stored"), b"x"
        yield "no URI", b"x"
        await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(s3dlio.InvalidInputError, match="no URI"):
        asyncio.run(aio.put_many(items(), max_in_flight=8))
    assert time.monotonic() - began < 30
    assert s3dlio.get(place.uri("stored")) == b"x"


def test_failure_of_the_iterable_is_raised_and_what_came_before_is_stored(place: Place) -> None:
    def items() -> Iterator[tuple[str, bytes]]:
        yield place.uri("before"), b"x"
        raise LookupError("of the caller")

    with pytest.raises(LookupError, match="of the caller"):
        asyncio.run(aio.put_many(items()))
    assert s3dlio.get(place.uri("before")) == b"x"


def test_files_go_up_and_come_down(place: Place, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_bytes(b"content")
    told: list[tuple[int, int]] = []

    async def main() -> None:
        uris = await aio.upload(tmp_path / "from", place.uri("up"), progress=lambda *count: told.append(count))
        assert uris == [place.uri("up/file")]
        assert await aio.download(place.uri("up"), tmp_path / "to") == [str(tmp_path / "to" / "file")]

    asyncio.run(main())
    assert (tmp_path / "to" / "file").read_bytes() == b"content"
    assert told == [(7, 7)]
    with pytest.raises(s3dlio.NotFoundError):
        asyncio.run(aio.download(place.uri("nothing"), tmp_path / "to"))
