"""S3 and Azure over TLS: certificates are checked, and parts go through whole."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import servers
from certificates import certificate
from proxy import Proxy

import s3dlio

MIB = 1 << 20


def test_objects_go_through_tls(s3: str, seaweed: servers.Server, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB)
    with Proxy(seaweed.url, certificate(tmp_path, "127.0.0.1")) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url, ca_bundle=str(tmp_path / "ca.pem"))
        with s3dlio.open_writer(f"{s3}/tls/object", buffer_size=5 * MIB) as writer:
            writer.write_chunk(data)
        assert s3dlio.get(f"{s3}/tls/object") == data
        assert s3dlio.get_many([f"{s3}/tls/object"] * 3) == [(f"{s3}/tls/object", data)] * 3
        assert proxy.requests
        servers.disconnect()


@pytest.mark.parametrize(("address", "is_trusted"), [("127.0.0.1", False), ("127.0.0.2", True)])
@pytest.mark.parametrize("size", [1, 5 * MIB])  # through awscrt, and over a socket
def test_wrong_certificate_is_refused_without_repetition(
    s3: str, seaweed: servers.Server, tmp_path: Path, address: str, is_trusted: bool, size: int
) -> None:
    with Proxy(seaweed.url, certificate(tmp_path, address)) as proxy:
        s3dlio.configure_s3(endpoint_url=proxy.url, ca_bundle=str(tmp_path / "ca.pem") if is_trusted else None)
        began = time.monotonic()
        with pytest.raises(s3dlio.StorageError, match=r"TLS|SSL") as caught:
            s3dlio.put(f"{s3}/tls/refused", bytes(size))
        assert caught.value.attempts == 1
        # awscrt's TLS library waits 10 to 30 s on purpose after a handshake that failed, to hide why.
        assert time.monotonic() - began < 60
        assert proxy.requests == []
        servers.disconnect()


def test_blobs_go_through_tls(
    azure: str, azurite: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(20 * MIB)
    with Proxy(azurite.url, certificate(tmp_path, "127.0.0.1")) as proxy:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        s3dlio.configure_azure(endpoint_url=proxy.url)
        with s3dlio.open_writer(f"{azure}/tls/blob", buffer_size=MIB) as writer:
            writer.write_chunk(data)
        assert s3dlio.get(f"{azure}/tls/blob") == data
        assert proxy.requests
        servers.disconnect_azure()


def test_wrong_certificate_of_azure_is_refused_without_repetition(
    azure: str, azurite: servers.Server, tmp_path: Path
) -> None:
    with Proxy(azurite.url, certificate(tmp_path, "127.0.0.1")) as proxy:
        s3dlio.configure_azure(endpoint_url=proxy.url)
        with pytest.raises(s3dlio.StorageError, match="certificate verify failed") as caught:
            s3dlio.put(f"{azure}/tls/refused", b"x")
        assert caught.value.attempts == 1
        assert proxy.requests == []
        servers.disconnect_azure()
