"""Azure beyond the contract of all stores, on a real server."""

from __future__ import annotations

import base64
import errno
import gc
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
import servers
from breakage import ACTIONS, Exchange, Response
from live_process import check_clients_of_children, interrupt
from memory_use import NOW
from proxy import Fault, Proxy, wait_until

import s3dlio
from s3dlio._stores import azure as store
from s3dlio._stores import azure_client, azure_upload

MIB = 1 << 20
BLOCK = 256 << 10

ODD_NAMES = [
    "a b",
    "a+b",
    "a%b",
    "a%20b",
    "a#b?c=d&e",
    "grüße/世界/🎈",
    "x" * 200 + "/" + "y" * 255,
    "quote\"'<>&;",
    "a=b:c,d$e@f!(g)*~",
    "/leading",
    "a//b",
    "x" * 1024,
]


def operations(proxy: Proxy) -> list[str]:
    return [operation for operation, _ in proxy.requests]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_odd_name_is_written_listed_read_copied_and_deleted(container: str, name: str) -> None:
    uri = f"{container}/{name}"
    s3dlio.put(uri, b"small")
    assert s3dlio.get(uri) == b"small"
    assert s3dlio.list(container) == [uri]
    with s3dlio.open_writer(uri, buffer_size=BLOCK) as writer:
        writer.write_chunk(bytes(2 * BLOCK) + b"!")
    assert s3dlio.stat(uri)["size"] == 2 * BLOCK + 1
    s3dlio.copy(uri, f"{container}/copy")
    assert s3dlio.stat(f"{container}/copy")["size"] == 2 * BLOCK + 1
    s3dlio.delete(uri)
    assert s3dlio.list(container) == [f"{container}/copy"]
    s3dlio.put(uri, b"again")
    s3dlio.delete(container, recursive=True)
    assert s3dlio.list(container) == []


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 40 * BLOCK + 1])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_stream_of_any_number_of_blocks_is_stored_whole(container: str, size: int, compression: str | None) -> None:
    data = random.Random(size).randbytes(size)
    options = s3dlio.WriterOptions(compression=compression, buffer_size=BLOCK, in_flight=2, content_type="text/x-test")
    with s3dlio.create_azure_writer(f"{container}/a", options) as writer:
        for start in range(0, size, 100_003):
            writer.write_chunk(data[start : start + 100_003])
    with s3dlio.open_reader(writer.uri, decompress=compression is not None) as reader:
        assert reader.read() == data
    assert writer.checksum() == f"crc32c:{s3dlio.crc32c(data):08x}"
    assert s3dlio.stat(writer.uri)["size"] == writer.compressed_bytes()
    assert blob(writer.uri).get_blob_properties().content_settings.content_type == "text/x-test"


def blob(uri: str) -> object:
    """The SDK's client of a blob, to see what the service has by another way."""
    from azure.storage.blob import BlobServiceClient

    account, name, key = uri.removeprefix("az://").split("/", 2)
    credential = {"account_name": account, "account_key": servers.ACCOUNT_KEY}
    return BlobServiceClient(os.environ["AZURE_STORAGE_ENDPOINT"], credential=credential).get_blob_client(name, key)


def blocks(uri: str) -> tuple[list[str], list[str]]:
    """The ids of a blob's committed and staged blocks."""
    client = blob(uri)
    committed, staged = client.get_block_list("all")
    client.close()
    return [each.id for each in committed], [each.id for each in staged]


def test_blocks_grow_so_that_their_number_suffices(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_upload, "BLOCKS_OF_A_SIZE", 2)
    monkeypatch.setattr(azure_upload, "MAX_BLOCKS", 6)
    data = random.Random(1).randbytes(10 * BLOCK)
    uri = f"{container}/grow"
    with s3dlio.open_writer(uri, buffer_size=BLOCK, in_flight=3) as writer:
        writer.write_chunk(data[: BLOCK + 5])
        writer.write_chunk(data[BLOCK + 5 :])
    assert writer.stats().blocks == 5  # of 1, 1, 2, 2 and 4 times the first
    assert s3dlio.get(uri) == data
    with (
        pytest.raises(s3dlio.StorageError, match="more than 6 blocks"),
        s3dlio.open_writer(uri, buffer_size=BLOCK) as writer,
    ):
        for _ in range(16):
            writer.write_chunk(data[:BLOCK])
    assert s3dlio.get(uri) == data


def test_blocks_are_staged_several_at_once_and_no_more_than_asked_for(
    container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, numbers = threading.Lock(), [0]

    def slow(exchange: Exchange) -> Response:
        with lock:
            numbers.append(numbers[-1] + 1)
        time.sleep(0.2)
        response: Response = exchange.forward(exchange.request)
        with lock:
            numbers.append(numbers[-1] - 1)
        return response

    monkeypatch.setitem(ACTIONS, "slow", slow)
    with Proxy(os.environ["AZURE_STORAGE_ENDPOINT"]) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url)
        proxy.faults = [Fault("slow", "Put Block", 1000)]
        for in_flight, least, most in ((1, 1, 1), (3, 3, 3), (40, 9, 16)):
            numbers[:] = [0]
            s3dlio.put(f"{container}/a", bytes(17 * MIB), buffer_size=MIB, in_flight=in_flight)
            assert least <= max(numbers) <= most
        servers.disconnect_azure()


def test_block_ids_are_of_one_length_and_of_one_writer_alone(container: str) -> None:
    uris = [f"{container}/{number}" for number in range(3)]
    ids = []
    for uri in uris:
        s3dlio.put(uri, bytes(17 * MIB), buffer_size=BLOCK)
        committed, staged = blocks(uri)
        assert staged == []
        assert len(committed) == 17 * MIB // BLOCK
        ids += committed
    assert len({len(each) for each in ids}) == 1
    assert len({each[:32] for each in ids}) == len(uris)
    sent = {base64.b64encode(each.encode()) for each in ids}
    assert len(sent) == len(ids)
    flipped = {
        each[:at] + bytes([each[at] ^ 1 << bit]) + each[at + 1 :]
        for each in sent
        for at in range(len(each))
        for bit in range(8)
    }
    assert not sent & flipped


def test_two_writers_of_one_blob_never_mix(container: str, figure: Callable[[str], None]) -> None:
    uri = f"{container}/race"
    stored = lost = 0
    for number in range(100):
        outcomes: list[str] = []
        start = threading.Barrier(2)
        contents = [bytes([2 * number % 256, side]) * (BLOCK + 100) for side in range(2)]

        def work(
            data: bytes, start: threading.Barrier = start, outcomes: list[str] = outcomes, whole: bool = number % 5 == 0
        ) -> None:
            start.wait(30)
            try:
                if whole and data[1]:
                    s3dlio.put(uri, data)
                else:
                    with s3dlio.open_writer(uri, buffer_size=BLOCK) as writer:
                        writer.write_chunk(data)
            except s3dlio.CorruptDataError as error:
                outcomes.append(str(error))
            else:
                outcomes.append("")

        threads = [threading.Thread(target=work, args=[data]) for data in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert s3dlio.get(uri) in contents, f"race {number}: mixed"
        assert len(outcomes) == 2
        assert "" in outcomes, f"race {number}: both lost"
        assert all("another writer has stored" in text and uri in text for text in outcomes if text)
        stored += outcomes.count("")
        lost += 2 - outcomes.count("")
    figure(f"azure races: 100 of two writers, {stored} stored, {lost} told that they lost, 0 mixed")


@pytest.mark.parametrize("nblocks", [0, 2])
def test_writer_whose_blob_another_stores_meanwhile_loses_or_wins_whole(container: str, nblocks: int) -> None:
    uri = f"{container}/overtaken"
    s3dlio.put(uri, b"before")
    data, others = bytes(3 * BLOCK), b"x" * (nblocks * BLOCK + 1)
    with s3dlio.open_writer(uri, buffer_size=BLOCK) as writer:
        writer.write_chunk(data)
        assert wait_until(lambda: len(blocks(uri)[1]) >= 2, 10)
        with s3dlio.open_writer(uri, buffer_size=BLOCK) as other:
            other.write_chunk(others)
        assert s3dlio.get(uri) == others
        # What is staged goes with each list, and by its documentation with Put Blob, where Azurite keeps it.
        lost = blocks(uri)[1] == []
        assert lost or not nblocks
        if lost:
            with pytest.raises(s3dlio.CorruptDataError, match=r"InvalidBlockList.*another writer has stored"):
                writer.finalize()
        else:
            writer.finalize()
        assert s3dlio.get(uri) == (others if lost else data)
        writer.abort()


def test_mark_of_a_folder_is_deleted_alone(container: str) -> None:
    # Nothing but recursive=True deleted it, with all that is below it.
    s3dlio.put(f"{container}/dir/a", b"x")
    with pytest.raises(s3dlio.NotAnObjectError):
        s3dlio.delete(f"{container}/dir/")
    blob(f"{container}/dir/").upload_blob(b"")
    assert s3dlio.list(container) == [f"{container}/dir/", f"{container}/dir/a"]
    s3dlio.delete(f"{container}/dir/")
    assert s3dlio.list(container) == [f"{container}/dir/a"]


def test_unfinished_stream_leaves_the_old_blob(container: str) -> None:
    uri = f"{container}/unfinished"
    s3dlio.put(uri, b"before")
    for how in ("abort", "exception", "drop"):
        writer = s3dlio.create_azure_writer(uri, s3dlio.WriterOptions(buffer_size=BLOCK))
        writer.write_chunk(bytes(5 * BLOCK))
        assert wait_until(lambda: blocks(uri)[1] != [], 10)
        if how == "abort":
            writer.abort()
        elif how == "exception":
            with pytest.raises(ZeroDivisionError), writer:
                raise ZeroDivisionError
        else:
            with pytest.warns(ResourceWarning, match="dropped unfinished"):
                del writer
                gc.collect()
        assert s3dlio.get(uri) == b"before"
        assert s3dlio.list(container) == [uri]
    assert wait_until(lambda: not threads_of_ours(), 10)


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "s3dlio-azure"]


def test_stream_is_dropped_when_the_interpreter_exits(
    container: str, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = """
import sys, s3dlio
writer = s3dlio.open_writer(sys.argv[1], buffer_size=1 << 18)
writer.write_chunk(bytes(11 << 20))
sys.exit(7)
"""
    s3dlio.put(f"{container}/exit", b"before")
    began = time.monotonic()
    done = run_python(code, f"{container}/exit", check=False)
    assert done.returncode == 7, done.stderr
    assert time.monotonic() - began < 20
    assert s3dlio.get(f"{container}/exit") == b"before"


def test_reader_of_a_replaced_blob_fails(container: str) -> None:
    uri = f"{container}/replaced"
    data = random.Random(3).randbytes(20 * MIB)
    s3dlio.put(uri, data)
    with s3dlio.open_reader(uri, buffer_size=MIB) as reader:
        assert reader.read(100) == data[:100]
        s3dlio.put(uri, data)  # the same bytes, and yet another version
        with pytest.raises(s3dlio.StorageError, match="replaced since it was opened") as caught:
            reader.read(10 * MIB)
    assert caught.value.uri == uri


def test_large_get_is_read_in_ranges_at_once(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "RANGE", MIB)
    data = random.Random(4).randbytes(20 * MIB + 17)
    uri = f"{container}/large"
    s3dlio.put(uri, data)
    with Proxy(os.environ["AZURE_STORAGE_ENDPOINT"]) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url)
        assert s3dlio.get(uri) == data
        assert operations(proxy).count("Get Blob") == 21
        for start, length in ((0, 1), (MIB - 1, 2), (5, 7 * MIB), (20 * MIB, 100), (20 * MIB + 17, 1)):
            assert s3dlio.get_range(uri, start, length) == data[start : start + length]
        s3dlio.put_many((f"{container}/many/{number}", bytes([number])) for number in range(100))
        wanted = [f"{container}/many/{number}" for number in range(100)]
        assert [found for _, found in s3dlio.get_many(wanted)] == [bytes([number]) for number in range(100)]
        servers.disconnect_azure()


def test_blob_with_a_content_encoding_comes_as_it_is_stored(container: str) -> None:
    # The SDK unpacked it, so that other bytes came than the size and the checksum say.
    import gzip

    from azure.storage.blob import ContentSettings

    packed = gzip.compress(bytes(100_000))
    client = blob(f"{container}/packed")
    client.upload_blob(packed, content_settings=ContentSettings(content_encoding="gzip"))
    client.close()
    assert s3dlio.get(f"{container}/packed") == packed


def test_long_list_comes_page_by_page(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [f"{container}/long/{number:05}" for number in range(600)]
    s3dlio.put_many(((uri, b"") for uri in expected), max_in_flight=16)
    client = azure_client.container_client
    with monkeypatch.context() as patch:
        patch.setattr(store, "container_client", lambda *where: SmallPages(client(*where)))
        assert s3dlio.list(f"{container}/long") == expected
        assert s3dlio.list(container, recursive=False) == [f"{container}/long/"]
    with Proxy(os.environ["AZURE_STORAGE_ENDPOINT"]) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url)
        s3dlio.delete(container, recursive=True)
        assert operations(proxy).count("Blob Batch") == 3
        assert operations(proxy).count("Delete Blob") == 0
        assert s3dlio.list(container) == []
        servers.disconnect_azure()


class SmallPages:
    """A container whose pages hold 70 names."""

    def __init__(self, client: object) -> None:
        self._client = client

    def __getattr__(self, name: str) -> object:
        found = getattr(self._client, name)
        if name in ("list_blobs", "walk_blobs"):
            return lambda **settings: found(**settings | {"results_per_page": 70})
        return found


def test_containers_are_made_once_and_deleted_when_empty(azure: str) -> None:
    uri = f"az://{servers.ACCOUNT}/second"
    s3dlio.create_bucket(uri)
    s3dlio.create_bucket(uri)
    s3dlio.put(f"{uri}/a", b"x")
    with pytest.raises(s3dlio.StorageError, match="not empty") as caught:
        s3dlio.delete_bucket(uri)
    assert caught.value.errno == errno.ENOTEMPTY
    assert s3dlio.get(f"{uri}/a") == b"x"
    s3dlio.delete(f"{uri}/a")
    s3dlio.delete_bucket(uri)
    for operation in (s3dlio.list, s3dlio.delete_bucket):
        with pytest.raises(s3dlio.NotFoundError, match="ContainerNotFound"):
            operation(uri)
    for operation in (s3dlio.get, s3dlio.stat, s3dlio.delete):
        with pytest.raises(s3dlio.NotFoundError):
            operation(f"{uri}/a")
    for operation in (s3dlio.create_bucket, s3dlio.delete_bucket):
        with pytest.raises(s3dlio.InvalidInputError, match="it must be az://account/container"):
            operation(f"{uri}/a")
    with pytest.raises(s3dlio.UnsupportedError, match="az does not have that"):
        s3dlio.list_stale_uploads(uri)


def test_copy_keeps_the_content_type_and_is_done_by_the_service(container: str) -> None:
    data = random.Random(5).randbytes(3 * MIB)
    s3dlio.put(f"{container}/from", data, content_type="text/x-test")
    with Proxy(os.environ["AZURE_STORAGE_ENDPOINT"]) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url)
        assert s3dlio.copy(f"{container}/from", f"{container}/to") == f"{container}/to"
        assert "Copy Blob" in operations(proxy)
        assert "Get Blob" not in operations(proxy)
        servers.disconnect_azure()
    assert s3dlio.get(f"{container}/to") == data
    found = blob(f"{container}/to")
    assert found.get_blob_properties().content_settings.content_type == "text/x-test"
    found.close()


def test_error_tells_what_the_service_said(container: str) -> None:
    uri = f"az://{servers.ACCOUNT}/no-such-container/a"
    for operation in (s3dlio.list, s3dlio.get):
        with pytest.raises(s3dlio.NotFoundError) as caught:
            operation(uri)
        assert (caught.value.status, caught.value.code) == (404, "ContainerNotFound")
        assert caught.value.attempts == 1
        assert caught.value.request_id in str(caught.value)
        assert uri in str(caught.value)


def test_nobody_there_is_an_error_in_bounded_time(container: str) -> None:
    (port,) = servers.free_ports(1)
    s3dlio.configure_azure(endpoint_url=f"http://127.0.0.1:{port}", retries=2, backoff=0.05)
    began = time.monotonic()
    with pytest.raises(s3dlio.StorageError, match="tried 3 times") as caught:
        s3dlio.get(f"{container}/a")
    assert caught.value.attempts == 3
    assert time.monotonic() - began < 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads
def test_client_is_made_anew_after_a_fork(container: str) -> None:
    check_clients_of_children(container)


def test_stream_takes_no_more_memory_than_the_formula_says(
    container: str, run_python: Callable[..., subprocess.CompletedProcess[str]], figure: Callable[[str], None]
) -> None:
    code = """
import sys, s3dlio

def stream(nblocks):
    with s3dlio.open_writer(sys.argv[1], buffer_size=4 << 20, in_flight=3) as writer:
        for _ in range(nblocks):
            writer.write_chunk(chunk)

chunk = bytes(4 << 20)
s3dlio.put(sys.argv[1], b"")
s3dlio.stat(sys.argv[1])
before = now("VmHWM")
stream(8)
few = now("VmHWM")
stream(64)
print(few - before, now("VmHWM") - before)
"""
    few, many = map(int, run_python(NOW + code, f"{container}/memory").stdout.split())
    assert many - few < 4 * MIB  # it does not grow with the blob
    assert many < 4 * 4 * MIB + 6 * MIB
    figure(f"azure memory: 256 MiB in blocks of 4 MiB, 3 in flight: {many / MIB:.1f} MiB more, the formula says 16")


def test_ctrl_c_ends_every_wait_at_once(container: str) -> None:
    s3dlio.put(f"{container}/a", bytes(100))
    s3dlio.put(f"{container}/large", bytes(17 * MIB))

    def stream() -> None:
        with s3dlio.open_writer(f"{container}/b", buffer_size=BLOCK, in_flight=1) as writer:
            for _ in range(10):
                writer.write_chunk(bytes(BLOCK))

    waits: list[tuple[str, Callable[[], object]]] = [
        ("Get Blob", lambda: s3dlio.get(f"{container}/a")),
        ("Get Blob", lambda: s3dlio.get(f"{container}/large")),
        ("Get Blob Properties", lambda: s3dlio.stat(f"{container}/a")),
        ("Put Blob", lambda: s3dlio.put(f"{container}/b", bytes(100))),
        ("Put Blob", lambda: s3dlio.put(f"{container}/b", bytes(10 * MIB))),
        ("List Blobs", lambda: s3dlio.list(container)),
        ("Delete Blob", lambda: s3dlio.delete(f"{container}/c")),
        ("Blob Batch", lambda: s3dlio.delete(f"{container}/a", recursive=True)),
        ("Copy Blob", lambda: s3dlio.copy(f"{container}/a", f"{container}/c")),
        ("Put Block", stream),
        ("Put Block List", stream),
    ]
    url = os.environ["AZURE_STORAGE_ENDPOINT"]
    with Proxy(url) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url)
        for operation, wait in waits:
            proxy.faults = [Fault("stall", operation, 1000)]
            interrupt(wait, lambda: proxy.faults[0].fired > 0, 1.0)
    servers.disconnect_azure()
    assert wait_until(lambda: not threads_of_ours(), 10)
    s3dlio.configure_azure(endpoint_url=url)
    assert s3dlio.list(container) == [f"{container}/a", f"{container}/large"]
