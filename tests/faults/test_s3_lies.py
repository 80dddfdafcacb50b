"""Servers that say an object is stored, and it is not, or not all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from proxy import Fault, Proxy, wait_until
from s3_cases import OLD
from s3_work import CHECKED, IN_PARTS, WHOLE, WRITES

import s3dlio

LIES = {
    WHOLE: (("200 with nothing", "PutObject"), ("stored half, and tells", "PutObject")),
    CHECKED: (("not stored", "PutObject"), ("stored half", "PutObject"), ("stored half, and tells", "PutObject")),
    IN_PARTS: (
        ("not stored", "UploadPart"),
        ("stored half", "UploadPart"),
        ("not stored", "CompleteMultipartUpload"),
        ("part left out", "CompleteMultipartUpload"),
    ),
}


@pytest.fixture
def liar(moto: str, moto_server: servers.Server, through: Callable[..., None]) -> Iterator[Proxy]:
    """On moto, which checks nothing and so can be made to store anything."""
    with Proxy(moto_server.url) as proxy:
        through(proxy)
        yield proxy
        servers.disconnect()


def test_store_that_lies_is_found_out(moto: str, liar: Proxy, tmp_path: Path, figure: Callable[[str], None]) -> None:
    told = 0
    for name in WRITES:
        if name == "copy":  # by the store itself
            continue
        requests = WRITES[name].requests
        for kind, operation in LIES.get(requests, LIES[IN_PARTS]):
            case = f"{name}: {kind}, {operation}"
            uri = f"{moto}/lies/{told}"
            s3dlio.put(uri, OLD)
            fault = Fault(kind, operation, key="partNumber=2" if operation == "UploadPart" else "")
            data = bytes(range(256)) * (WRITES[name].size // 256)
            with liar.breaking(fault):
                try:
                    WRITES[name].do(uri, data, tmp_path)
                except s3dlio.S3dlioError:
                    pass
                else:
                    pytest.fail(f"{case}: believed")
            assert fault.fired == 1, case
            assert s3dlio.get(uri) == OLD or kind != "not stored", case
            assert wait_until(lambda uri=uri: s3dlio.list_stale_uploads(uri) == [], 10), case
            told += 1
    figure(f"s3 stores that lie: {told} lies, 0 believed")


@pytest.mark.parametrize("kind", ["not stored", "stored half"])
def test_put_believes_a_lie_that_the_answer_does_not_show(moto: str, liar: Proxy, kind: str) -> None:
    """The one exception (docs/s3.md): one request stores it, and none asks again."""
    with liar.breaking(Fault(kind, "PutObject")):
        s3dlio.put(f"{moto}/believed", bytes(1000))
    assert not s3dlio.exists(f"{moto}/believed") or len(s3dlio.get(f"{moto}/believed")) == 500
    s3dlio.delete(f"{moto}/believed")


def test_client_that_does_not_verify_is_caught(moto: str, liar: Proxy, tmp_path: Path) -> None:
    """A planted fault."""
    s3dlio.configure_s3(verify="none")
    with liar.breaking(Fault("not stored", "CompleteMultipartUpload")):
        WRITES["stream in parts"].do(f"{moto}/planted", bytes(WRITES["stream in parts"].size), tmp_path)
    assert not s3dlio.exists(f"{moto}/planted")


@pytest.mark.parametrize("operation", ["PutObject", "CompleteMultipartUpload"])
def test_older_object_of_the_same_size_is_told_apart_by_its_tag(moto: str, liar: Proxy, operation: str) -> None:
    s3dlio.configure_s3(checksums=False)
    size = 1000 if operation == "PutObject" else 11 << 20
    uri = f"{moto}/alike"
    for byte, expected in ((b"a", None), (b"b", s3dlio.CorruptDataError), (b"c", None)):
        faults = [Fault("not stored", operation)] if expected else []
        with liar.breaking(*faults), contextlib.ExitStack() as stack:
            if expected:
                stack.enter_context(pytest.raises(expected, match="lost"))
            with s3dlio.open_writer(uri, buffer_size=5 << 20) as writer:
                writer.write_chunk(byte * size)
        assert s3dlio.get(uri)[:1] == (b"a" if expected else byte)
    s3dlio.delete(uri)
