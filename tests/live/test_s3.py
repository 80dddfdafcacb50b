"""S3 beyond the contract of all stores, on a real server."""

from __future__ import annotations

import gc
import random
import subprocess
import time
import urllib.request
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import servers
from live_process import check_clients_of_children, interrupt
from proxy import Fault, Proxy, wait_until

import s3dlio
from s3dlio._stores import s3_client, s3_upload

MIB = 1 << 20
PART = 5 * MIB

ODD_KEYS = [
    "a b",
    "a+b",
    "a%b",
    "a%20b",
    "a#b?c=d&e",
    "grüße/世界/🎈",
    "x" * 200 + "/" + "y" * 255,
    "quote\"'<>&;",
    "a=b:c,d$e@f!(g)*~",
    "tab\tand more",
]


@pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
def test_odd_key_is_written_listed_and_read_back(s3: str, key: str) -> None:
    base = f"{s3}/odd"
    uri = f"{base}/{key}"
    s3dlio.delete(base, recursive=True)
    s3dlio.put(uri, b"small")
    assert s3dlio.get(uri) == b"small"
    assert s3dlio.list(base) == [uri]
    with s3dlio.open_writer(uri, buffer_size=PART) as writer:
        writer.write_chunk(bytes(PART) + b"!")
    assert s3dlio.stat(uri)["size"] == PART + 1
    s3dlio.delete(uri)
    assert s3dlio.list(base) == []


@pytest.mark.parametrize("key", ["x" * 1024, "/leading", "a//b", "a/../b", "./c"])
def test_key_that_is_no_path_is_written_listed_and_read_back(moto: str, key: str) -> None:
    s3dlio.put(f"{moto}/{key}", b"small")
    assert s3dlio.get(f"{moto}/{key}") == b"small"
    assert f"{moto}/{key}" in s3dlio.list(moto)
    s3dlio.delete(f"{moto}/{key}")
    assert not s3dlio.exists(f"{moto}/{key}")


def test_parts_grow_so_that_their_number_suffices(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "PARTS_OF_A_SIZE", 2)
    monkeypatch.setattr(s3_upload, "MAX_PARTS", 6)
    data = random.Random(1).randbytes(10 * PART)
    uri = f"{s3}/grow/a"
    with s3dlio.open_writer(uri, buffer_size=PART, in_flight=3) as writer:
        writer.write_chunk(data[: PART + 5])
        writer.write_chunk(data[PART + 5 :])
    assert writer.stats().blocks == 5  # of 5, 5, 10, 10, and 20 MiB
    assert s3dlio.get(uri) == data
    writer = s3dlio.open_writer(uri, buffer_size=PART)
    with pytest.raises(s3dlio.StorageError, match="more than 6 parts"), writer:
        for _ in range(16):
            writer.write_chunk(data[:PART])
    assert s3dlio.get(uri) == data
    assert s3dlio.list_stale_uploads(f"{s3}/grow/") == []


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART + 1])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_stream_of_any_number_of_parts_is_stored_whole(s3: str, size: int, compression: str | None) -> None:
    data = random.Random(size).randbytes(size)
    uri = f"{s3}/parts/{size}"
    with s3dlio.create_s3_writer(
        uri, s3dlio.WriterOptions(compression=compression, buffer_size=PART, in_flight=2)
    ) as writer:
        for start in range(0, size, 1_000_003):
            writer.write_chunk(data[start : start + 1_000_003])
    with s3dlio.open_reader(writer.uri, decompress=compression is not None) as reader:
        assert reader.read() == data
    assert writer.checksum() == f"crc32c:{s3dlio.crc32c(data):08x}"
    assert s3dlio.stat(writer.uri)["size"] == writer.compressed_bytes()
    assert s3dlio.list_stale_uploads(f"{s3}/parts/") == []


def test_unfinished_stream_leaves_neither_object_nor_parts(s3: str) -> None:
    uri = f"{s3}/unfinished/a"
    s3dlio.put(uri, b"before")
    for how in ("abort", "exception", "drop"):
        writer = s3dlio.create_s3_writer(uri, s3dlio.WriterOptions(buffer_size=PART))
        writer.write_chunk(bytes(3 * PART))
        assert len(s3dlio.list_stale_uploads(uri)) == 1
        if how == "abort":
            writer.abort()
        elif how == "exception":
            with pytest.raises(ZeroDivisionError), writer:
                raise ZeroDivisionError
        else:
            with pytest.warns(ResourceWarning, match="dropped unfinished"):
                del writer
        assert wait_until(lambda: s3dlio.list_stale_uploads(uri) == [], 10)
        assert s3dlio.get(uri) == b"before"


def test_stream_is_aborted_when_the_interpreter_exits(
    s3: str, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = """
import sys, s3dlio
writer = s3dlio.open_writer(sys.argv[1], buffer_size=5 << 20)
writer.write_chunk(bytes(11 << 20))
assert len(s3dlio.list_stale_uploads(sys.argv[1])) == 1
sys.exit(7)
"""
    done = run_python(code, f"{s3}/exit/a", check=False)
    assert done.returncode == 7, done.stderr
    assert s3dlio.list_stale_uploads(f"{s3}/exit/") == []
    assert not s3dlio.exists(f"{s3}/exit/a")


def test_idle_stream_is_aborted_where_no_thread_can_be_started_any_more(
    s3: str, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    # As from Python 3.12 on, once the interpreter ends.
    code = """
import atexit, sys, threading, time, s3dlio
writer = s3dlio.open_writer(sys.argv[1], buffer_size=5 << 20)
writer.write_chunk(bytes(11 << 20))
assert len(s3dlio.list_stale_uploads(sys.argv[1])) == 1
deadline = time.monotonic() + 20
while any(thread.name.startswith("s3dlio-s3") for thread in threading.enumerate()):
    assert time.monotonic() < deadline
    time.sleep(0.05)

def refuse(thread):
    raise RuntimeError("can't start new thread at interpreter shutdown")

atexit.register(lambda: setattr(threading.Thread, "start", refuse))
"""
    run_python(code, f"{s3}/exit-idle/a")
    assert s3dlio.list_stale_uploads(f"{s3}/exit-idle/") == []


def test_stale_uploads_are_listed_and_aborted(
    s3: str, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = """
import os, sys, s3dlio
writer = s3dlio.open_writer(sys.argv[1], buffer_size=5 << 20)
writer.write_chunk(bytes(11 << 20))
os._exit(0)
"""
    run_python(code, f"{s3}/stale/a b")
    (upload,) = s3dlio.list_stale_uploads(f"{s3}/stale/")
    assert upload.uri == f"{s3}/stale/a b"
    assert s3dlio.abort_stale_uploads(f"{s3}/stale/", older_than=3600) == []
    assert s3dlio.abort_stale_uploads(f"{s3}/stale/", older_than=0) == [upload]
    assert s3dlio.list_stale_uploads(f"{s3}/stale/") == []


def test_bucket_with_objects_is_not_deleted(s3: str) -> None:
    s3dlio.create_bucket("s3://second")
    s3dlio.put("s3://second/a", b"x")
    with pytest.raises(s3dlio.StorageError, match="not empty"):
        s3dlio.delete_bucket("s3://second")
    assert s3dlio.get("s3://second/a") == b"x"
    s3dlio.delete("s3://second/a")
    s3dlio.delete_bucket("s3://second")
    with pytest.raises(s3dlio.NotFoundError, match="NoSuchBucket"):
        s3dlio.list("s3://second")


def test_long_list_comes_page_by_page(s3: str) -> None:
    base = f"{s3}/long"
    expected = [f"{base}/{number:05}" for number in range(2345)]
    s3dlio.put_many((uri, b"") for uri in expected)
    assert s3dlio.list(base) == expected
    s3dlio.delete(base, recursive=True)
    assert s3dlio.list(base) == []


def test_error_tells_what_the_server_said(s3: str) -> None:
    with pytest.raises(s3dlio.NotFoundError) as caught:
        s3dlio.list("s3://no-such-bucket/a")
    assert caught.value.status == 404
    assert caught.value.code == "NoSuchBucket"
    assert caught.value.request_id
    assert caught.value.attempts == 1
    assert "s3://no-such-bucket/" in str(caught.value)


def test_wrong_credentials_are_refused_and_not_shown(s3: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    for settings in (
        {"access_key_id": servers.ACCESS_KEY, "secret_access_key": "wrong-secret", "session_token": None},
        {"access_key_id": "AKIANOBODY", "secret_access_key": "wrong-secret"},
    ):
        s3dlio.configure_s3(**settings)
        with pytest.raises(s3dlio.PermissionDeniedError) as caught:
            s3dlio.get(f"{s3}/secret")
        seen = caplog.text + str(caught.value) + repr(caught.value) + repr(caught.value.__cause__)
        assert "wrong-secret" not in seen
        assert servers.SECRET_KEY not in seen


def test_credentials_may_come_from_a_function(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def credentials() -> tuple[str, str, None]:
        calls.append(1)
        return servers.ACCESS_KEY, servers.SECRET_KEY, None

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3dlio.configure_s3(credentials=credentials)
    s3dlio.put(f"{s3}/delegated", b"x")
    assert s3dlio.get(f"{s3}/delegated") == b"x"
    assert calls


def test_credentials_of_a_named_profile_go_before_the_environment(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "credentials"
    shared.write_text(
        f"[good]\naws_access_key_id = {servers.ACCESS_KEY}\naws_secret_access_key = {servers.SECRET_KEY}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    with pytest.raises(s3dlio.PermissionDeniedError):
        s3dlio.put(f"{s3}/profile", b"x")
    s3dlio.configure_s3(profile="good")
    s3dlio.put(f"{s3}/profile", b"x")
    s3dlio.configure_s3(profile="missing")
    with pytest.raises(s3dlio.InvalidInputError, match="no AWS profile 'missing'"):
        s3dlio.get(f"{s3}/profile")


def test_missing_credentials_say_so(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    began = time.monotonic()
    with pytest.raises(s3dlio.PermissionDeniedError, match="no credentials"):
        s3dlio.get(f"{s3}/a")
    assert time.monotonic() - began < 2  # the metadata service is not asked


def test_nobody_there_is_an_error_in_bounded_time(s3: str) -> None:
    (port,) = servers.free_ports(1)
    s3dlio.configure_s3(endpoint_url=f"http://127.0.0.1:{port}", retries=2, backoff=0.05)
    with pytest.raises(s3dlio.StorageError, match="tried 3 times") as caught:
        s3dlio.get(f"{s3}/a")
    assert caught.value.attempts == 3


def test_client_is_made_anew_after_a_fork(s3: str) -> None:
    check_clients_of_children(s3)


def test_mark_of_a_folder_is_deleted_alone(moto: str, moto_server: servers.Server) -> None:
    # Nothing but recursive=True deleted it, with all that is below it.
    s3dlio.put(f"{moto}/marked/a", b"x")
    with pytest.raises(s3dlio.NotAnObjectError):
        s3dlio.delete(f"{moto}/marked/")
    request = urllib.request.Request(f"{moto_server.url}/tests/marked/", b"", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    assert s3dlio.list(f"{moto}/marked") == [f"{moto}/marked/", f"{moto}/marked/a"]
    s3dlio.delete(f"{moto}/marked/")
    assert s3dlio.list(f"{moto}/marked") == [f"{moto}/marked/a"]


@pytest.mark.parametrize("key", ["../out", "/etc/out", "a/../../out", "a//b", "./a"])
def test_download_of_a_key_that_leaves_the_folder_is_refused(moto: str, key: str, tmp_path: Path) -> None:
    s3dlio.put(f"{moto}/escape/{key}", b"x")
    s3dlio.put(f"{moto}/escape/good", b"x")
    target = tmp_path / "to"
    with pytest.raises(s3dlio.InvalidInputError, match="no name of a file below"):
        s3dlio.download(f"{moto}/escape", target)
    assert not target.exists()
    s3dlio.delete(f"{moto}/escape", recursive=True)


def test_download_through_a_link_that_leaves_the_folder_is_refused(s3: str, tmp_path: Path) -> None:
    s3dlio.put(f"{s3}/link/away/file", b"x")
    (tmp_path / "to").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to" / "away").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(s3dlio.InvalidInputError, match="a link leads"):
        s3dlio.download(f"{s3}/link", tmp_path / "to")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_ctrl_c_ends_every_wait_at_once(s3: str, seaweed: servers.Server) -> None:
    with Proxy(seaweed.url) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url)
        s3dlio.put(f"{s3}/interrupt/a", bytes(100))

        def stream() -> None:
            with s3dlio.open_writer(f"{s3}/interrupt/b", buffer_size=PART, in_flight=1) as writer:
                for _ in range(10):
                    writer.write_chunk(bytes(PART))

        def put_many() -> None:
            s3dlio.put_many((f"{s3}/interrupt/b", bytes(100)) for _ in range(1000))

        waits: list[tuple[str, Callable[[], object]]] = [
            ("GetObject", lambda: s3dlio.get(f"{s3}/interrupt/a")),
            ("GetObject", lambda: s3dlio.get_many([f"{s3}/interrupt/a"] * 1000)),
            ("HeadObject", lambda: s3dlio.stat(f"{s3}/interrupt/a")),
            ("PutObject", lambda: s3dlio.put(f"{s3}/interrupt/b", bytes(100))),
            ("PutObject", put_many),
            ("ListObjectsV2", lambda: s3dlio.list(f"{s3}/interrupt")),
            ("CreateMultipartUpload", stream),
            ("UploadPart", stream),
            ("CompleteMultipartUpload", stream),
        ]
        for operation, wait in waits:
            proxy.faults = [Fault("stall", operation, 1000)]
            interrupt(wait, lambda: proxy.faults[0].fired > 0, 1.0)
        proxy.faults = []
        assert not s3dlio.exists(f"{s3}/interrupt/b")
        left = s3dlio.list_stale_uploads(f"{s3}/interrupt/")
        assert len(left) <= 1  # of the answer to Create that never came
        servers.disconnect()


def test_put_asks_what_is_stored_where_that_is_wanted(s3: str, seaweed: servers.Server) -> None:
    with Proxy(seaweed.url) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url)
        proxy.faults = [Fault("not stored", "PutObject", 1000)]
        s3dlio.put(f"{s3}/lied", b"x")  # the answer was good
        for verify in ("size", "checksum"):
            with pytest.raises(s3dlio.CorruptDataError, match="lost"):
                s3dlio.put(f"{s3}/lied", b"x", verify=verify)
            with pytest.raises(s3dlio.CorruptDataError, match="lost"):
                s3dlio.put_many([(f"{s3}/lied", b"x")], verify=verify)
        proxy.faults = []
        proxy.requests.clear()
        s3dlio.put(f"{s3}/true", b"x", verify="checksum")
        with s3dlio.open_writer(f"{s3}/true", verify="none") as writer:
            writer.write_chunk(b"y")
        assert [operation for operation, _ in proxy.requests] == ["PutObject", "HeadObject", "PutObject"]
        servers.disconnect()


def test_store_without_checksums_is_told_of_the_switch(s3: str, seaweed: servers.Server) -> None:
    data = bytes(PART + 1)
    with Proxy(seaweed.url) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url)
        proxy.faults = [Fault("knows no checksums", name, 1000) for name in ("PutObject", "CreateMultipartUpload")]
        for size in (1, PART + 1):
            with (
                pytest.raises(s3dlio.UnsupportedError, match=r"configure_s3\(checksums=False\)"),
                s3dlio.open_writer(f"{s3}/unchecked", buffer_size=PART) as writer,
            ):
                writer.write_chunk(data[:size])
        s3dlio.configure_s3(checksums=False)
        for size in (1, PART + 1):
            with s3dlio.open_writer(f"{s3}/unchecked", buffer_size=PART) as writer:
                writer.write_chunk(data[:size])
            assert s3dlio.get(f"{s3}/unchecked") == data[:size]
        servers.disconnect()


@pytest.mark.parametrize("name", ["tests?x", "te#sts", "te%73ts", "..", "a\r\nb", "", "te sts"])
def test_bucket_name_with_a_meaning_of_its_own_is_refused(s3: str, name: str) -> None:
    # DELETE /tests?x/a is not the deletion of an object: it deleted the bucket.
    s3dlio.put(f"{s3}/keep", b"x")
    for operation in (s3dlio.get, s3dlio.delete, s3dlio.stat, s3dlio.list, s3dlio.list_stale_uploads):
        with pytest.raises(s3dlio.InvalidInputError):
            operation(f"s3://{name}/a")
    with pytest.raises(s3dlio.InvalidInputError):
        s3dlio.put(f"s3://{name}/a", b"")
    with pytest.raises(s3dlio.InvalidInputError):
        s3dlio.delete_bucket(f"s3://{name}")
    assert s3dlio.get(f"{s3}/keep") == b"x"


def test_uploads_of_a_longer_name_are_left_alone(s3: str) -> None:
    with s3dlio.open_writer(f"{s3}/run10/x", buffer_size=PART) as writer:
        writer.write_chunk(bytes(3 * PART))
        assert s3dlio.abort_stale_uploads(f"{s3}/run1", older_than=0) == []
    assert s3dlio.stat(f"{s3}/run10/x")["size"] == 3 * PART


def test_writers_in_garbage_do_not_stop_the_others(s3: str) -> None:
    # The collector may come anywhere, also inside the making of a client: it waited for a lock of its own thread.
    for _ in range(3):
        writer = s3dlio.open_writer(f"{s3}/garbage/a", buffer_size=PART)
        writer.write_chunk(bytes(2 * PART))
        cycle: list[object] = [writer]
        cycle.append(cycle)
        s3_client.close_all()
        with pytest.warns(ResourceWarning, match="dropped unfinished"):
            del writer, cycle
            before = gc.get_threshold()
            gc.set_threshold(1)
            try:
                found = s3dlio.list(f"{s3}/garbage")
            finally:
                gc.set_threshold(*before)
        assert found == []
    assert wait_until(lambda: s3dlio.list_stale_uploads(f"{s3}/garbage") == [], 10)


def test_finished_writers_leave_no_memory_to_the_collector(s3: str) -> None:
    gc.collect()
    gc.disable()
    try:
        alive = []
        for number in range(5):
            with s3dlio.open_writer(f"{s3}/cycles/{number}") as writer:
                writer.write_chunk(bytes(1000))
            alive.append(weakref.ref(writer._stream))
            del writer
        assert wait_until(lambda: not any(each() for each in alive), 5)
    finally:
        gc.enable()
