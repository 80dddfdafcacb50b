"""What the client compares: each of these once went by in silence, or made noise about nothing."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from proxy import Fault, Proxy

import s3dlio
from s3dlio._stores import s3_upload

PART = 5 << 20


@pytest.fixture
def proxy(s3: str, seaweed: servers.Server) -> Iterator[Proxy]:
    with Proxy(seaweed.url) as between:
        s3dlio.configure_s3(endpoint_url=between.url, retries=1, backoff=0.02)
        yield between
        servers.disconnect()


@pytest.mark.parametrize("operation", [s3dlio.download, s3dlio.copy])
def test_bit_that_flips_in_a_piece_of_a_large_object_is_found(
    s3: str, proxy: Proxy, tmp_path: Path, operation: Callable[[str, str], object]
) -> None:
    # What goes from store to store in pieces was compared with nothing: only a read of the whole object was.
    data = random.Random(1).randbytes(9 << 20)
    s3dlio.put(f"{s3}/checks/a", data)
    target = "memory://checks/a" if operation is s3dlio.copy else str(tmp_path)
    fault = Fault("flip in response", "GetObject", skip=1)
    with proxy.breaking(fault), pytest.raises(s3dlio.CorruptDataError, match="checks/a"):
        operation(f"{s3}/checks/a", target)
    assert list(tmp_path.iterdir()) == []
    assert not s3dlio.exists("memory://checks/a")
    operation(f"{s3}/checks/a", target)


def test_empty_object_whose_checksum_is_another_is_refused(s3: str, proxy: Proxy, tmp_path: Path) -> None:
    # A wrong length in the answer to HEAD: nothing was read then, and so nothing compared.
    s3dlio.put(f"{s3}/checks/one", b"1")
    for read in (lambda uri: s3dlio.get_range(uri, 0), lambda uri: s3dlio.download(uri, tmp_path)):
        with proxy.breaking(Fault("half an answer", "HeadObject")), pytest.raises(s3dlio.CorruptDataError):
            read(f"{s3}/checks/one")
    assert list(tmp_path.iterdir()) == []


def test_put_of_which_half_is_stored_is_found_out_by_the_answer(moto: str, moto_server: servers.Server) -> None:
    # The checksum in the answer was not looked at.
    with Proxy(moto_server.url) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url)
        fault = Fault("stored half, and tells", "PutObject")
        with proxy.breaking(fault), pytest.raises(s3dlio.CorruptDataError, match="was sent"):
            s3dlio.put(f"{moto}/checks/half", bytes(1000))
        servers.disconnect()


def test_object_that_could_not_be_verified_is_not_aborted_later(
    s3: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    # Its writer counted as unfinished for as long as somebody held the error: at the end of the interpreter the upload
    # was aborted, which was done long ago.
    caplog.set_level(logging.WARNING)
    writer = s3dlio.open_writer(f"{s3}/checks/unverified", buffer_size=PART)
    fault = Fault("500", "HeadObject", 1000)
    with proxy.breaking(fault), pytest.raises(s3dlio.StorageError, match="could not be verified"), writer:
        writer.write_chunk(bytes(PART + 1))
    s3_upload._at_exit()
    assert "AbortMultipartUpload" not in dict(proxy.requests)
    assert caplog.text == ""
    assert s3dlio.stat(f"{s3}/checks/unverified")["size"] == PART + 1
