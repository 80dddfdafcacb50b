"""What the errors of S3 say: where, what and why."""

from __future__ import annotations

import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

import s3dlio


class _Teller(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the key names, and says nothing more."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("content-length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def teller() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Teller) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        place = f"127.0.0.1:{server.server_port}"
        s3dlio.configure_s3(
            endpoint_url=f"http://{place}", access_key_id="a", secret_access_key="b", retries=0, stall_timeout=1.0
        )
        yield place
        servers.disconnect()
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (301, s3dlio.StorageError, "elsewhere"),
        (400, s3dlio.StorageError, "not told why"),
        (401, s3dlio.PermissionDeniedError, "not accepted"),
        (403, s3dlio.PermissionDeniedError, "denied"),
        (404, s3dlio.NotFoundError, "no such object, or no such bucket"),
    ],
)
def test_answer_without_a_body_is_put_into_words(
    teller: str, status: int, kind: type[s3dlio.S3dlioError], words: str
) -> None:
    with pytest.raises(kind, match=f"HeadObject s3://abc/{status}: HTTP {status}: .*{words}"):
        s3dlio.stat(f"s3://abc/{status}")


def test_connection_that_fails_is_named(teller: str) -> None:
    (port,) = servers.free_ports(1)
    s3dlio.configure_s3(endpoint_url=f"http://127.0.0.1:{port}/below")
    for call in (s3dlio.get, s3dlio.stat, s3dlio.list, s3dlio.list_stale_uploads):
        with pytest.raises(s3dlio.StorageError, match=rf"s3://abc/d/e: 127\.0\.0\.1:{port}: .*REFUSED"):
            call("s3://abc/d/e")
    s3dlio.configure_s3(endpoint_url="http://no-such-host.invalid")
    with pytest.raises(s3dlio.StorageError, match=r"no-such-host\.invalid"):
        s3dlio.get("s3://abc/d")


def test_credentials_that_are_missing_are_told_apart(
    teller: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    s3dlio.configure_s3(access_key_id=None, secret_access_key=None)
    with pytest.raises(s3dlio.PermissionDeniedError, match="no credentials to sign with"):
        s3dlio.get("s3://abc/404")
    s3dlio.configure_s3(stall_timeout=1.1)  # another connection
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    with pytest.raises(s3dlio.InvalidInputError, match=r"AWS_ACCESS_KEY_ID is set .* AWS_SECRET_ACCESS_KEY is not"):
        s3dlio.get("s3://abc/404")
    s3dlio.configure_s3(profile="nobody")
    nobody = rf"no AWS profile 'nobody' in {tmp_path}/config or {tmp_path}/credentials"
    with pytest.raises(s3dlio.InvalidInputError, match=nobody):
        s3dlio.get("s3://abc/404")
    s3dlio.configure_s3(profile=None)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(s3dlio.InvalidInputError, match=nobody):
        s3dlio.get("s3://abc/404")
    (tmp_path / "credentials").write_text("[somebody]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_PROFILE", "somebody")
    with pytest.raises(s3dlio.NotFoundError):
        s3dlio.get("s3://abc/404")


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        ("raise", rf"failed: LookupError at {re.escape(__file__)}:\d+"),
        (("only one",), "must return"),
        (3, "must return"),
        (("id", None, None), "must return"),
    ],
)
def test_function_for_credentials_that_fails(teller: str, answer: Any, how: str) -> None:
    def function() -> Any:
        if answer == "raise":
            raise LookupError("secret")
        return answer

    s3dlio.configure_s3(credentials=function)
    with pytest.raises(s3dlio.PermissionDeniedError, match=f"the function for credentials {how}") as caught:
        s3dlio.get("s3://abc/404")
    assert caught.value.__cause__ is caught.value.__context__ is None  # which could tell the secret


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: s3dlio.get_many("s3://abc/d"), "several URIs"),
        (lambda: s3dlio.put_many({"s3://abc/d": b"x"}), "items"),
        (lambda: s3dlio.put_many(["s3"]), "pair"),
        (lambda: s3dlio.open_writer("s3://abc/d", bufer_size=3), "'bufer_size'; there are .*buffer_size"),
        (lambda: s3dlio.MultipartUploadWriter("s3://abc", "d"), "from_uri"),
        (lambda: s3dlio.MultipartUploadWriter("abc", b"d"), "key must be a str, not bytes"),
        (lambda: s3dlio.configure_s3(region=5), "region must be a str, not int"),
        (lambda: s3dlio.put("s3://abc/d", "text"), "put s3://abc/d: .* not str"),
        (lambda: s3dlio.put_many([("s3://abc/d", b"", 1)]), "pair of URI and data, not tuple of 3"),
        (lambda: s3dlio.put("s3://abc/d", b"", require_direct=True), "O_DIRECT"),
        (lambda: s3dlio.open_writer("memory://abc/d", require_direct=True), "O_DIRECT"),
        (lambda: s3dlio.delete("s3://abc"), "recursive=True"),
        (lambda: s3dlio.delete("memory://abc"), "recursive=True"),
        (lambda: s3dlio.configure_s3(ca_bundle="/no/such/file"), "ca_bundle '/no/such/file' is no file"),
    ],
)
def test_call_that_cannot_be_meant_so(teller: str, call: Callable[[], object], words: str) -> None:
    kinds = (TypeError, s3dlio.InvalidInputError, s3dlio.UnsupportedError, s3dlio.NotAnObjectError)
    with pytest.raises(kinds, match=words):
        call()
