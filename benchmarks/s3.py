"""S3: streams into objects of 512 MiB, such objects into memory, and many objects of 16 KiB, against an endpoint that
costs next to nothing (null_s3.c), where the cost of the client shows, and against SeaweedFS.  The others have the
settings that are theirs where nothing else is said."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import race
import writers
from memory import Peak
from race import GIB, KIB, MIB, ROOT, Contender, Race, Unavailable

# Answers of a run: what it got or took, for checks.
Run = Callable[..., dict[str, Any]]

BUCKET = "bench"
CHUNK = writers.CHUNK
SMALL = 16 * KIB
IN_FLIGHT = 64
# Of these, 1 to 64, each gets most done on two cores with so many.
TORCH_THREADS, BOTO3_THREADS, OBSTORE_THREADS = 32, 10, 16
LIMIT_MIB = 96


def send(
    nbytes: int, write: Callable[[bytes], object], finish: Callable[[], object], fresh: bool = False
) -> dict[str, Any]:
    """With ``fresh`` each chunk is memory of its own, as where data is made, and who keeps it shows."""
    chunk = writers.chunk_of(CHUNK)
    peak = Peak()
    for _ in range(nbytes // CHUNK):
        write(bytes(memoryview(chunk)) if fresh else chunk)
    finish()
    return {"peak": peak.nbytes() - CHUNK * fresh}


def receive(get: Callable[[], Any]) -> dict[str, Any]:
    peak = Peak()
    view = memoryview(get())
    return {"peak": peak.nbytes() - len(view), "bytes": len(view), "sample": bytes(view[:: 32 * MIB]).hex()}


def receive_many(objects: Iterable[Any]) -> dict[str, Any]:
    views = [memoryview(each) for each in objects]
    return {"bytes": sum(map(len, views)), "sample": b"".join(view[:4] for view in views[::500]).hex()}


def small_keys(count: int) -> list[str]:
    return [f"small/{number}-{SMALL}" for number in range(count)]


def ours_put() -> Run:
    import s3dlio

    def put(path: str, key: str, nbytes: int, fresh: bool = False) -> dict[str, Any]:
        writer = s3dlio.create_s3_writer(f"s3://{BUCKET}/{key}")
        return send(nbytes, writer.write_chunk, writer.finalize, fresh)

    return put


def ours_get() -> Run:
    import s3dlio

    return lambda path, key: receive(lambda: s3dlio.get(f"s3://{BUCKET}/{key}"))


def ours_into() -> Run:
    import s3dlio

    kept: list[bytearray] = []

    def get(path: str, key: str) -> dict[str, Any]:
        with s3dlio.open_reader(f"s3://{BUCKET}/{key}") as reader:
            size = reader.seek(0, io.SEEK_END)
            reader.seek(0)
            if not kept:
                kept.append(bytearray(size))

            def read() -> bytearray:
                reader.readinto(kept[0])
                return kept[0]

            return receive(read)

    return get


def ours_many() -> Run:
    import s3dlio

    def get(path: str, count: int) -> dict[str, Any]:
        uris = [f"s3://{BUCKET}/{key}" for key in small_keys(count)]
        return receive_many(data for _, data in s3dlio.get_many(uris, max_in_flight=IN_FLIGHT))

    return get


# The reference has the same calls under the same names.
REFERENCE = {"python": race.reference_python}


def installed(*packages: str) -> Callable[[], str]:
    def python() -> str:
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            raise Unavailable(f"not installed: {', '.join(missing)}")
        return sys.executable

    return python


def obstore_store(**settings: Any) -> Any:
    from obstore.store import S3Store

    # The rest it takes from the environment.
    return S3Store(BUCKET, client_options={"allow_http": True}, **settings)


def obstore_put(**settings: Any) -> Run:
    import obstore

    store = obstore_store(**settings)

    def put(path: str, key: str, nbytes: int, fresh: bool = False) -> dict[str, Any]:
        writer = obstore.open_writer(store, key)
        return send(nbytes, writer.write, writer.close, fresh)

    return put


def obstore_get() -> Run:
    import obstore

    store = obstore_store()
    return lambda path, key: receive(lambda: obstore.get(store, key).bytes())


def obstore_many() -> Run:
    import obstore

    store = obstore_store()

    async def get_all(keys: list[str]) -> list[Any]:
        turn = asyncio.Semaphore(IN_FLIGHT)

        async def get(key: str) -> Any:
            async with turn:
                return await (await obstore.get_async(store, key)).bytes_async()

        return await asyncio.gather(*map(get, keys))

    return lambda path, count: receive_many(asyncio.run(get_all(small_keys(count))))


def obstore_threads() -> Run:
    import obstore

    store = obstore_store()
    pool = ThreadPoolExecutor(OBSTORE_THREADS)
    return lambda path, count: receive_many(pool.map(lambda key: obstore.get(store, key).bytes(), small_keys(count)))


OBSTORE = {"python": installed("obstore")}


class Repeated(io.RawIOBase):
    """A file that is one chunk again and again."""

    def __init__(self, nbytes: int, fresh: bool) -> None:
        self._chunk = writers.chunk_of(CHUNK)
        self._left = nbytes
        self._fresh = fresh

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = min(size if size >= 0 else CHUNK, CHUNK, self._left)
        self._left -= size
        if self._fresh:
            return bytes(memoryview(self._chunk)[:size])
        return self._chunk[:size]  # all of it is no copy


def boto3_client() -> Any:
    import boto3

    return boto3.client("s3")


def boto3_put() -> Run:
    client = boto3_client()

    def put(path: str, key: str, nbytes: int, fresh: bool = False) -> dict[str, Any]:
        file = Repeated(nbytes, fresh)
        peak = Peak()
        client.upload_fileobj(file, BUCKET, key)
        return {"peak": peak.nbytes() - CHUNK * fresh}

    return put


def boto3_get() -> Run:
    client = boto3_client()
    return lambda path, key: receive(lambda: client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def boto3_download() -> Run:
    client = boto3_client()

    def get(path: str, key: str) -> dict[str, Any]:
        def download() -> Any:
            file = io.BytesIO()
            client.download_fileobj(BUCKET, key, file)
            return file.getbuffer()

        return receive(download)

    return get


def boto3_many() -> Run:
    client = boto3_client()
    pool = ThreadPoolExecutor(BOTO3_THREADS)

    def get(key: str) -> bytes:
        data: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data

    return lambda path, count: receive_many(pool.map(get, small_keys(count)))


BOTO3 = {"python": installed("boto3")}


def torch_client() -> Any:
    """The client of s3torchconnector, which that builds so with its defaults, and with the bucket in the path."""
    from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

    environment = os.environ
    return MountpointS3Client(
        environment["AWS_REGION"], endpoint=environment["AWS_ENDPOINT_URL_S3"], force_path_style=True
    )


def torch_put() -> Run:
    client = torch_client()

    def put(path: str, key: str, nbytes: int, fresh: bool = False) -> dict[str, Any]:
        stream = client.put_object(BUCKET, key)
        return send(nbytes, stream.write, stream.close, fresh)

    return put


def torch_get() -> Run:
    client = torch_client()

    def get(path: str, key: str) -> dict[str, Any]:
        def read() -> bytes:
            # As s3torchconnector's sequential reader does it.
            buffer = io.BytesIO()
            for part in client.get_object(BUCKET, key):
                buffer.write(part)
            return buffer.getvalue()

        return receive(read)

    return get


def torch_many() -> Run:
    client = torch_client()
    pool = ThreadPoolExecutor(TORCH_THREADS)

    def get(key: str) -> bytes:
        return b"".join(client.get_object(BUCKET, key))

    return lambda path, count: receive_many(pool.map(get, small_keys(count)))


TORCH = {"python": installed("s3torchconnectorclient")}

PUTS = (
    Contender("s3dlio, create_s3_writer()", ours_put),
    Contender("obstore, open_writer()", obstore_put, target=1.0, **OBSTORE),
    Contender("obstore, unsigned_payload", lambda: obstore_put(unsigned_payload=True), **OBSTORE),
    Contender("s3torchconnectorclient, put_object()", torch_put, **TORCH),
    Contender("boto3, upload_fileobj()", boto3_put, **BOTO3),
    Contender("reference's create_s3_writer()", ours_put, **REFERENCE),
)
GETS = (
    Contender("s3dlio, get()", ours_get),
    Contender("obstore, get().bytes()", obstore_get, target=1.0, **OBSTORE),
    Contender("s3torchconnectorclient, get_object()", torch_get, **TORCH),
    Contender("boto3, get_object()", boto3_get, **BOTO3),
    Contender("boto3, download_fileobj()", boto3_download, **BOTO3),
    Contender("reference's get()", ours_get, **REFERENCE),
)
# In memory that is kept from one to the next, as the others keep theirs by themselves.
GETS_INTO = (
    Contender("s3dlio, open_reader().readinto()", ours_into),
    Contender("obstore, get().bytes() again", obstore_get, target=1.0, **OBSTORE),
)
MANY = (
    Contender("s3dlio, get_many()", ours_many),
    Contender("obstore, get_async()", obstore_many, target=1.0, **OBSTORE),
    Contender("obstore, get().bytes() in threads", obstore_threads, target=1.0, **OBSTORE),
    Contender("s3torchconnectorclient in threads", torch_many, target=0.9, **TORCH),
    Contender("boto3 in threads", boto3_many, **BOTO3),
    Contender("reference's get_many()", ours_many, target=1.0, **REFERENCE),
)
# The share of the other's CPU time in ours.
CPU_TARGETS = {"obstore, open_writer()": 0.9}


@contextmanager
def null_endpoint(folder: Path) -> Iterator[str]:
    with subprocess.Popen([race.compiled("null_s3.c")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    sys.path.append(str(ROOT / "tests"))
    import pytest
    import servers

    try:
        server = servers.start_seaweed(folder)
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        raise Unavailable(str(reason)) from reason
    try:
        yield server.url
    finally:
        server.stop()


def connect(url: str) -> None:
    """Has this process and the workers to come use the endpoint, whoever runs them."""
    sys.path.append(str(ROOT / "tests"))
    import servers

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    settings = servers.environment(url)
    settings |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": settings["AWS_REGION"]}
    os.environ.update({name: value for name, value in settings.items() if value})


def same(nbytes: int) -> Callable[[Path, dict[str, Any]], None]:
    """A check that a contender got so many bytes, and those that the first one got."""
    samples: set[str] = set()

    def check(path: Path, answer: dict[str, Any]) -> None:
        samples.add(answer["sample"])
        if answer["bytes"] != nbytes or len(samples) > 1:
            sys.exit(f"{answer['bytes']} bytes came, not {nbytes}, or not the same: {samples}")

    return check


def puts(contest: Race, place: str, nbytes: int, contenders: list[str]) -> None:
    import s3dlio

    uri = f"s3://{BUCKET}/stream"

    def check(path: Path, answer: dict[str, Any]) -> None:
        if (size := s3dlio.stat(uri)["size"]) != nbytes:
            sys.exit(f"{uri} has {size} bytes, not {nbytes}")

    contest.case(
        f"PUT of {nbytes // MIB} MiB, {place}",
        ("stream", nbytes),
        nbytes / 1e9,
        "GB/s",
        contenders=contenders,
        cpu_targets=CPU_TARGETS,
        before=lambda: s3dlio.delete(uri),
        check=check,
        settle=place != NULL,
    )


def gets(contest: Race, place: str, nbytes: int, contenders: list[str]) -> None:
    key = f"large-{nbytes}"
    is_null = place.startswith(NULL)
    if not is_null:
        import s3dlio

        # In a process that ends: this one shall not hold what the clients do.
        contest.worker(PUTS[0].name).run("", key, nbytes)
        assert s3dlio.stat(f"s3://{BUCKET}/{key}")["size"] == nbytes
    contest.case(
        f"GET of {nbytes // MIB} MiB, {place}",
        (key,),
        nbytes / 1e9,
        "GB/s",
        contenders=contenders,
        cpu_targets={},
        check=same(nbytes),
        settle=not is_null,
    )


def many(contest: Race, place: str, count: int) -> None:
    if place != NULL:
        import s3dlio

        s3dlio.put_many((f"s3://{BUCKET}/{key}", os.urandom(SMALL)) for key in small_keys(count))
    contest.case(
        f"{count} GETs of {SMALL // KIB} KiB, {place}",
        (count,),
        count,
        "objects/s",
        contenders=[contender.name for contender in MANY],
        cpu_targets={},
        check=same(count * SMALL),
        settle=place != NULL,
    )


def peaks(contest: Race, title: str, names: list[str], arguments: tuple[Any, ...], rounds: int) -> None:
    """The peak of each in new processes: an old one has memory to spare."""
    rows = {}
    for name in contest.available(names):
        values = []
        for instance in range(1, rounds + 1):
            worker = contest.worker(name, instance)
            values.append(worker.run("", *arguments)["peak"] / MIB)
            worker.close()
        rows[name] = {"value": race.spread(values)}
    rows[names[0]]["target"] = f"at most {LIMIT_MIB}"
    contest.add({"title": title, "unit": "MiB", "rounds": rounds, "rows": rows})


NULL = "null endpoint"


def compare(contest: Race, place: str) -> None:
    import s3dlio

    s3dlio.create_bucket(f"s3://{BUCKET}")
    nbytes = contest.pick(full=512 * MIB, quick=64 * MIB)
    put_names, get_names, into_names = (
        [contender.name for contender in contenders] for contenders in (PUTS, GETS, GETS_INTO)
    )
    puts(contest, place, nbytes, put_names)
    gets(contest, place, nbytes, get_names)
    gets(contest, f"{place}, into kept memory", nbytes, into_names)
    many(contest, place, contest.pick(full=5_000, quick=500))
    if not contest.quick:
        puts(contest, place, GIB, put_names[:1])
        gets(contest, place, GIB, get_names[:1])
    title = f"Peak of memory in a PUT of {nbytes // MIB} MiB, {place}"
    peaks(contest, title, put_names, ("stream", nbytes, True), contest.pick(full=3, quick=1))


def main() -> None:
    with Race(__file__, "S3: large objects and small ones", (*PUTS, *GETS, *GETS_INTO, *MANY)) as contest:
        for place, start in ((NULL, null_endpoint), ("SeaweedFS", seaweed)):
            with ExitStack() as stack:
                try:
                    url = stack.enter_context(start(contest.folder))
                except Unavailable as reason:
                    contest.note(f"{place} is left out: {reason}.")
                    continue
                connect(url)
                compare(contest, place)
                contest.end_workers()


if __name__ == "__main__":
    main()
