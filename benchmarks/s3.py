"""S3: streams into objects of 512 MiB, such objects into memory, and many objects of 16 KiB, against an endpoint that
costs next to nothing (null_endpoint.c), where the cost of the client shows, and against SeaweedFS.  The others have the
settings that are theirs where nothing else is said."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import clients
from clients import CHUNK, NULL, OBSTORE, REFERENCE, Large, Repeated, Run, installed, names, receive, same, send
from memory import Peak
from race import KIB, Contender, Race

BUCKET = "bench"
SMALL = 16 * KIB
IN_FLIGHT = 64
# Of these, 1 to 64, each gets most done on two cores with so many.
TORCH_THREADS, BOTO3_THREADS, OBSTORE_THREADS = 32, 10, 16
LIMIT_MIB = 96


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


def connect(url: str) -> None:
    """Has this process and the workers to come use the endpoint, whoever runs them."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    settings = clients.of_the_tests().environment(url)
    settings |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": settings["AWS_REGION"]}
    os.environ.update({name: value for name, value in settings.items() if value})


def many(contest: Race, place: str, count: int) -> None:
    if place != NULL:
        import s3dlio

        s3dlio.put_many((f"s3://{BUCKET}/{key}", os.urandom(SMALL)) for key in small_keys(count))
    contest.case(
        f"{count} GETs of {SMALL // KIB} KiB, {place}",
        (count,),
        count,
        "objects/s",
        contenders=names(MANY),
        cpu_targets={},
        check=same(count * SMALL),
        settle=place != NULL,
    )


def compare(contest: Race, place: str, url: str) -> None:
    import s3dlio

    connect(url)
    bucket = f"s3://{BUCKET}"
    s3dlio.create_bucket(bucket)
    large = Large(contest, bucket, place, names(PUTS), names(GETS), LIMIT_MIB)

    def more(nbytes: int) -> None:
        large.get(nbytes, names(GETS_INTO), ", into kept memory")
        many(contest, place, contest.pick(full=5_000, quick=500))

    large.compare(CPU_TARGETS, more)


def main() -> None:
    with Race(__file__, "S3: large objects and small ones", (*PUTS, *GETS, *GETS_INTO, *MANY)) as contest:
        seaweed = partial(clients.server_of, clients.of_the_tests().start_seaweed)
        places = {NULL: clients.null_endpoint, "SeaweedFS": seaweed}
        clients.at_each_place(contest, places, partial(compare, contest))


if __name__ == "__main__":
    main()
