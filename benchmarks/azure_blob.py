"""Azure: streams into blobs of 512 MiB, and such blobs into memory, against an endpoint that costs next to nothing
(null_endpoint.c), where the cost of the client shows, and against Azurite.  The others have the settings that are
theirs where nothing else is said."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import clients
from clients import CHUNK, NULL, OBSTORE, Large, Repeated, Run, installed, names, receive, send
from memory import Peak
from race import Contender, Race

CONTAINER = "bench"
CONCURRENCY = 8
# Nine blocks of 8 MiB, and what stands beside them in docs/azure.md.
LIMIT_MIB = 84


def account() -> str:
    return os.environ["AZURE_STORAGE_ACCOUNT"]


def uri_of(key: str) -> str:
    return f"az://{account()}/{CONTAINER}/{key}"


def ours_put(checksums: str) -> Run:
    import s3dlio

    s3dlio.configure_azure(checksums=checksums)

    def put(path: str, key: str, nbytes: int, fresh: bool = False) -> dict[str, Any]:
        writer = s3dlio.create_azure_writer(uri_of(key))
        return send(nbytes, writer.write_chunk, writer.finalize, fresh)

    return put


def ours_get() -> Run:
    import s3dlio

    return lambda path, key: receive(lambda: s3dlio.get(uri_of(key)))


def sdk_container() -> Any:
    from azure.storage.blob import BlobServiceClient

    credential = {"account_name": account(), "account_key": os.environ["AZURE_STORAGE_KEY"]}
    return BlobServiceClient(os.environ["AZURE_STORAGE_ENDPOINT"], credential=credential).get_container_client(
        CONTAINER
    )


def sdk_put(**settings: Any) -> Run:
    container = sdk_container()

    def put(path: str, key: str, nbytes: int, fresh: bool = False) -> dict[str, Any]:
        file = Repeated(nbytes, fresh)
        peak = Peak()
        container.upload_blob(key, file, overwrite=True, max_concurrency=CONCURRENCY, **settings)
        return {"peak": peak.nbytes() - CHUNK * fresh}

    return put


def sdk_get() -> Run:
    container = sdk_container()
    return lambda path, key: receive(lambda: container.download_blob(key, max_concurrency=CONCURRENCY).readall())


SDK = {"python": installed("azure.storage.blob")}


def obstore_store() -> Any:
    from obstore.store import AzureStore

    return AzureStore(
        CONTAINER,
        account_name=account(),
        account_key=os.environ["AZURE_STORAGE_KEY"],
        endpoint=os.environ["AZURE_STORAGE_ENDPOINT"],
        client_options={"allow_http": True},
    )


def obstore_put() -> Run:
    import obstore

    store = obstore_store()

    def put(path: str, key: str, nbytes: int, fresh: bool = False) -> dict[str, Any]:
        writer = obstore.open_writer(store, key)
        return send(nbytes, writer.write, writer.close, fresh)

    return put


def obstore_get() -> Run:
    import obstore

    store = obstore_store()
    return lambda path, key: receive(lambda: obstore.get(store, key).bytes())


PUTS = (
    Contender("s3dlio, CRC64 as in the cloud", partial(ours_put, "crc64")),
    Contender("s3dlio, MD5 as on emulators", partial(ours_put, "md5")),
    Contender("s3dlio, checksums='none'", partial(ours_put, "none")),
    Contender("SDK, upload_blob()", sdk_put, **SDK),
    Contender("SDK, validate_content (MD5)", partial(sdk_put, validate_content=True), **SDK),
    Contender("obstore, open_writer()", obstore_put, **OBSTORE),
)
GETS = (
    Contender("s3dlio, get()", ours_get),
    Contender("SDK, download_blob()", sdk_get, **SDK),
    Contender("obstore, get().bytes()", obstore_get, **OBSTORE),
)
# The share of the other's CPU time in ours.
CPU_TARGETS = {"SDK, upload_blob()": 1.0}


def connect(url: str) -> None:
    """Has this process and the workers to come use the endpoint, whoever runs them."""
    servers = clients.of_the_tests()
    url = url.removesuffix(f"/{servers.ACCOUNT}") + f"/{servers.ACCOUNT}"
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        del os.environ[name]
    settings = servers.azure_environment(url) | {"AZURE_STORAGE_ACCOUNT": servers.ACCOUNT}
    os.environ.update({name: value for name, value in settings.items() if value})


def compare(contest: Race, place: str, url: str) -> None:
    import s3dlio

    connect(url)
    container = f"az://{account()}/{CONTAINER}"
    s3dlio.create_bucket(container)
    Large(contest, container, place, names(PUTS), names(GETS), LIMIT_MIB).compare(CPU_TARGETS)


def main() -> None:
    with Race(__file__, "Azure: large blobs", (*PUTS, *GETS)) as contest:
        azurite = partial(clients.server_of, clients.of_the_tests().start_azurite)
        places = {NULL: clients.null_endpoint, "Azurite": azurite}
        clients.at_each_place(contest, places, partial(compare, contest))


if __name__ == "__main__":
    main()
