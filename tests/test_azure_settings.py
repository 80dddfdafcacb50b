"""How Azure is reached: where a URI leads, what signs, and where settings come from."""

from __future__ import annotations

import base64
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import servers
from azure.core.credentials import AccessToken

import s3dlio
from s3dlio._native import pointer
from s3dlio._stores import azure_http
from s3dlio._stores.azure_client import place_of
from s3dlio._stores.azure_settings import AzureSettings, Own, current_settings
from s3dlio._stores.azure_upload import BLOCKS_OF_A_SIZE, MAX_BLOCK, MAX_BLOCKS, block_size, checksum_headers
from s3dlio._uri import parse_uri

KEY = base64.b64encode(b"secret of the tests").decode()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in servers.azure_environment(""):
        monkeypatch.delenv(name, raising=False)
    yield
    servers.disconnect_azure()


@pytest.mark.parametrize(
    ("uri", "account", "container", "expected"),
    [
        ("az://acc/con/a/b", None, None, ("acc", "con", "a/b")),
        ("az://acc/con/a/b", "acc", None, ("acc", "con", "a/b")),
        ("az://acc/con/a/b", "acc", "other", ("acc", "con", "a/b")),
        ("az://con/a/b", "acc", None, ("acc", "con", "a/b")),
        ("az://con/a/b", "acc", "other", ("acc", "con", "a/b")),
        ("az:///a/b", "acc", "con", ("acc", "con", "a/b")),
        ("az:////a", "acc", "con", ("acc", "con", "/a")),
        ("az://acc/con//a", None, None, ("acc", "con", "/a")),
        ("az://acc/con/a//b?c#d%20", None, None, ("acc", "con", "a//b?c#d%20")),
        ("az://acc/con", None, None, ("acc", "con", "")),
        ("az://con", "acc", None, ("acc", "con", "")),
        ("az:///", "acc", "con", ("acc", "con", "")),
    ],
)
def test_uri_leads_where_the_rule_says(
    uri: str, account: str | None, container: str | None, expected: tuple[str, str, str]
) -> None:
    place = place_of(parse_uri(uri), AzureSettings(account=account, container=container), "get")
    assert (place.account, place.container, place.blob) == expected
    if place.blob:
        assert parse_uri(uri).key == place.prefix + place.blob


@pytest.mark.parametrize(
    ("uri", "account", "container", "what"),
    [
        ("az:///a", None, "con", "no account, and AZURE_BLOB_ACCOUNT is not set"),
        ("az:///a", "acc", None, "no container, and AZURE_BLOB_CONTAINER is not set"),
        ("az://acc", None, None, "no container$"),
        ("az://acc/", "acc", "con", "no container$"),  # it was said that AZURE_BLOB_CONTAINER is not set
        ("az://con/x", None, None, "'x', which is no name of a container.* no account is set, 'con' was taken for it"),
        ("az://con-1/x/y", None, None, "'con-1', which is no name of an account.* no account is set"),
    ],
)
def test_uri_that_leaves_out_too_much_is_refused(
    uri: str, account: str | None, container: str | None, what: str
) -> None:
    with pytest.raises(s3dlio.InvalidInputError, match=what) as caught:
        place_of(parse_uri(uri), AzureSettings(account=account, container=container), "get")
    assert "az:" in str(caught.value)


def test_uri_without_its_account_is_told_how_it_is_read() -> None:
    for operation in ("get", "stat", "exists", "delete", "open_writer"):
        with pytest.raises(s3dlio.InvalidInputError, match="'con' was taken for it, and 'blob' for the container"):
            getattr(s3dlio, operation)("az://con/blob")


@pytest.mark.parametrize("uri", ["az://acc/con/", "az://acc/con/a/", "az://acc/con"])
def test_writer_of_what_is_no_blob_is_refused(uri: str) -> None:
    with pytest.raises(s3dlio.InvalidInputError, match=r"names no (object|blob)"):
        s3dlio.create_azure_writer(uri)


@pytest.mark.parametrize(
    ("container", "blob"),
    [("te?st", "a"), ("te#st", "a"), ("te%73t", "a"), ("..", "a"), ("a\r\nb", "a"), ("te st", "a"), ("UPPER", "a")],
)
def test_container_with_a_meaning_of_its_own_is_refused(container: str, blob: str) -> None:
    s3dlio.configure_azure(account_key=KEY, endpoint_url="http://127.0.0.1:1", retries=0)
    for operation in (s3dlio.get, s3dlio.delete, s3dlio.stat, s3dlio.list):
        with pytest.raises(s3dlio.InvalidInputError, match="no name of a container"):
            operation(f"az://account/{container}/{blob}")
    with pytest.raises(s3dlio.InvalidInputError, match="no name of an account"):
        s3dlio.get(f"az://ac.example/{container}/{blob}")


@pytest.mark.parametrize(
    "name", ["a\\b", "\\", "..", "a/..", "../other/a", "a/./b", ".", "a\nb", "\x7f", "\ufffe", "\udc80"]
)
def test_name_that_would_become_another_or_none_is_refused(name: str) -> None:
    # A backslash became a slash, and '..' another container where a SAS does not sign the path.
    s3dlio.configure_azure(account="acc", account_key="a2V5", endpoint_url="http://127.0.0.1:9", retries=0)
    for uri in (f"az://acc/con/{name}", f"az://con/{name}"):
        for call in (s3dlio.get, s3dlio.list, s3dlio.open_writer, s3dlio.delete, lambda uri: s3dlio.put(uri, b"x")):
            with pytest.raises(s3dlio.InvalidInputError, match="no name of a blob"):
                call(uri)


def test_writer_of_another_scheme_is_refused() -> None:
    with pytest.raises(s3dlio.InvalidInputError, match="no az URI"):
        s3dlio.create_azure_writer("s3://bucket/a")


def test_connection_string_is_read_in_any_spelling() -> None:
    # Names in lower case, and that of the emulator, were passed over without a word.
    found = AzureSettings(connection_string=f"accountname=acc;ACCOUNTKEY={KEY};blobendpoint=http://127.0.0.1:1/acc;")
    assert (found.named_account, found.credentials()) == ("acc", ("key", KEY))
    assert found.endpoint("acc") == "http://127.0.0.1:1/acc"
    found = AzureSettings(connection_string="UseDevelopmentStorage=true;")
    assert (found.named_account, found.credentials()) == (servers.ACCOUNT, ("key", servers.ACCOUNT_KEY))
    assert found.endpoint(servers.ACCOUNT) == f"http://127.0.0.1:10000/{servers.ACCOUNT}"


def test_connection_string_of_the_environment_that_is_not_understood_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It was dropped, and another identity signed.
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "the secret")
    with pytest.raises(s3dlio.InvalidInputError, match="the connection string of Azure is not understood") as caught:
        s3dlio.get("az://acc/con/a")
    assert "secret" not in str(caught.value)


OPERATIONS: list[Callable[[str], object]] = [
    s3dlio.get,
    s3dlio.list,
    s3dlio.stat,
    lambda uri: s3dlio.put(uri, b"x"),
    lambda uri: s3dlio.delete(uri, recursive=True),
    lambda uri: s3dlio.download(uri, "/nowhere"),
    lambda uri: s3dlio.copy(uri, uri + "2"),
    lambda uri: s3dlio.create_bucket(uri[:-2]),
    lambda uri: s3dlio.delete_bucket(uri[:-2]),
]


class Unhashable:
    """As a plain dataclass."""

    __hash__ = None  # type: ignore[assignment]  # that is what it is

    def get_token(self, *scopes: str, **settings: Any) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"credential": object(), "endpoint_url": "https://127.0.0.1:9"}, "Unsupported credential"),
        ({"credential": Unhashable(), "endpoint_url": "http://127.0.0.1:9"}, "only supported with HTTPS"),
        ({"credential": Unhashable(), "endpoint_url": "https://127.0.0.1:9"}, "ZeroDivisionError"),
        ({"endpoint_url": "http://127.0.0.1:9/other"}, "not that of the account"),
        ({}, "no credentials for Azure"),
    ],
)
def test_client_that_cannot_be_made_is_an_error_of_ours(
    settings: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some came as the SDK raises them, or without the operation and the URI.
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    s3dlio.configure_azure(**settings)
    for operation in OPERATIONS:
        with pytest.raises(s3dlio.S3dlioError, match=why) as caught:
            operation("az://acc/con/a")
        assert caught.value.operation
        assert str(caught.value.uri).startswith("az://acc/con")
        assert re.match(r"[a-z ]+ az://acc/con", str(caught.value))


CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=named;AccountKey={KEY};EndpointSuffix=core.example"


def test_credentials_are_taken_in_order() -> None:
    with_sas = "BlobEndpoint=http://127.0.0.1:1/named;SharedAccessSignature=sv=1&sig=of-the-string"
    everything = {"account_key": "key", "sas_token": "?sas", "credential": Own(object()), "anonymous": True}
    assert AzureSettings(connection_string=CONNECTION, **everything).credentials() == ("key", KEY)
    assert AzureSettings(connection_string=with_sas, **everything).credentials() == ("sas", "sv=1&sig=of-the-string")
    for name, kind in (("account_key", "key"), ("sas_token", "sas"), ("credential", "object")):
        assert AzureSettings(**everything).credentials()[0] == kind
        del everything[name]
    assert AzureSettings(**everything).credentials() == ("anonymous", None)
    assert AzureSettings().credentials() == ("default", None)


def test_configured_credentials_go_before_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", CONNECTION)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "key of the environment")
    assert current_settings().credentials() == ("key", KEY)
    s3dlio.configure_azure(sas_token="sv=1")
    assert current_settings().credentials() == ("sas", "sv=1")
    assert current_settings().named_account == "named"
    assert current_settings().endpoint("named") == "https://named.blob.core.example"
    s3dlio.configure_azure(sas_token=None, anonymous=True)
    assert current_settings().credentials() == ("anonymous", None)
    s3dlio.configure_azure(anonymous=None)
    assert current_settings().credentials() == ("key", KEY)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_BLOB_ACCOUNT", "acc")
    monkeypatch.setenv("AZURE_BLOB_CONTAINER", "con")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1")
    monkeypatch.setenv("AZURE_BLOB_ENDPOINT_URL", "http://second:1/acc")
    found = current_settings()
    assert (found.account, found.container, found.sas_token) == ("acc", "con", "sv=1")
    assert found.endpoint_url == "http://second:1/acc"
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://first:1/acc")
    assert current_settings().endpoint_url == "http://first:1/acc"
    s3dlio.configure_azure(endpoint_url="http://third:1/acc", account="own", container="mine")
    found = current_settings()
    assert (found.account, found.container, found.endpoint_url) == ("own", "mine", "http://third:1/acc")


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (None, "https://acc.blob.core.windows.net"),
        ("http://127.0.0.1:10000", "http://127.0.0.1:10000/acc"),
        ("http://127.0.0.1:10000/acc", "http://127.0.0.1:10000/acc"),
        ("http://localhost:10000/", "http://localhost:10000/acc"),
        ("https://acc.blob.core.chinacloudapi.cn", "https://acc.blob.core.chinacloudapi.cn"),
        ("https://blobs.example", "https://blobs.example"),
    ],
)
def test_endpoint_is_that_of_the_account(endpoint: str | None, expected: str) -> None:
    assert AzureSettings(endpoint_url=endpoint).endpoint("acc") == expected


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:10000/other", "https://other.blob.core.windows.net"])
def test_endpoint_of_another_account_is_refused(endpoint: str) -> None:
    with pytest.raises(s3dlio.InvalidInputError, match="not that of the account 'acc'"):
        AzureSettings(endpoint_url=endpoint).endpoint("acc")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"account": "UPPER"}, ValueError),
        ({"endpoint_url": "ftp://a"}, ValueError),
        ({"endpoint_url": "http://user:secret@a"}, ValueError),
        ({"connection_string": "'AccountName=acc;AccountKey=secret'"}, ValueError),
        ({"connection_string": "secret"}, ValueError),
        ({"connection_string": "AccountName=acc;AccountKey="}, ValueError),
        ({"connection_string": "AccountName=acc;AccountKey=a2V5;secret"}, ValueError),
        ({"connection_string": "EndpointSuffix=secret"}, ValueError),
        ({"connection_string": b"AccountName=secret"}, TypeError),
        ({"account_key": b"secret"}, TypeError),
        ({"connection_string": "BlobEndpoint=https://a.blob.example/?sig=secret"}, ValueError),
        ({"checksums": "sha1"}, ValueError),
        ({"verify": "checksum"}, ValueError),
        ({"anonymous": 1}, TypeError),
        ({"retries": 1.5}, TypeError),
        ({"retries": 101}, ValueError),
        ({"stall_timeout": 0}, ValueError),
        ({"no_such_setting": 1}, TypeError),
    ],
)
def test_wrong_setting_is_refused_and_changes_nothing(settings: dict[str, Any], error: type[Exception]) -> None:
    before = current_settings()
    with pytest.raises(error) as caught:
        s3dlio.configure_azure(**settings)
    assert "secret" not in str(caught.value)
    assert current_settings() == before


def test_secrets_are_in_no_repr() -> None:
    text = repr(
        AzureSettings(
            connection_string="AccountName=secret", account_key="secret", sas_token="secret", credential=Own("secret")
        )
    )
    assert "secret" not in text


def test_checksum_of_the_cloud_is_crc64_and_of_others_md5() -> None:
    assert AzureSettings().checksum_kind("acc") == "crc64"
    assert AzureSettings(endpoint_url="https://acc.blob.core.chinacloudapi.cn").checksum_kind("acc") == "crc64"
    assert AzureSettings(endpoint_url="http://127.0.0.1:1").checksum_kind("acc") == "md5"
    assert AzureSettings(checksums="none").checksum_kind("acc") == "none"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(s3dlio.PermissionDeniedError, match=r"pip install 's3dlio-cffi\[azure-identity\]'"):
        s3dlio.get("az://account/container/blob")


@pytest.mark.parametrize("given", [True, False])
def test_credential_or_the_default_chain_signs(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    class Chain:
        def get_token(self, *scopes: str, **settings: Any) -> AccessToken:
            assert scopes == ("https://storage.azure.com/.default",)
            return AccessToken("the-token", int(time.time()) + 3600)

    def request(session: Any, method: str, url: str, **settings: Any) -> None:
        seen.append((url, settings["headers"]["Authorization"]))
        raise ZeroDivisionError

    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(azure_http._Session, "request", request)
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", None if given else Chain)
    if given:
        s3dlio.configure_azure(credential=Chain())
    with pytest.raises(s3dlio.StorageError, match="ZeroDivisionError"):
        s3dlio.get("az://account/container/blob")
    assert seen == [("https://account.blob.core.windows.net/container/blob", "Bearer the-token")]


def test_without_the_sdk_its_package_is_named(run_python: Any) -> None:
    code = """
import sys, s3dlio
sys.modules["azure"] = None
try:
    s3dlio.get("az://account/container/blob")
except s3dlio.UnsupportedError as error:
    print(error)
"""
    assert "pip install azure-storage-blob" in run_python(code).stdout


@pytest.mark.parametrize("first", [64 << 10, 8 << 20, 64 << 20])
def test_blocks_grow_so_that_their_number_suffices(first: int) -> None:
    sizes = [block_size(number, first) for number in range(1, MAX_BLOCKS + 1)]
    assert sizes[:BLOCKS_OF_A_SIZE] == [first] * BLOCKS_OF_A_SIZE
    assert sizes == sorted(sizes)
    assert max(sizes) <= MAX_BLOCK
    assert sum(sizes) >= 76 << 40


def test_crc64_is_that_of_the_service() -> None:
    # CRC-64/NVME of its check value, little-endian, as "Put Block" asks for.
    settings = AzureSettings(checksums="crc64")
    headers = checksum_headers(
        settings, place_of(parse_uri("az://acc/con/a"), settings, "put"), memoryview(b"123456789")
    )
    assert base64.b64decode(headers["x-ms-content-crc64"]) == 0xAE8B14860A799888.to_bytes(8, "little")


def test_failed_range_is_never_taken_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # That it was over could be seen a moment before why: a read with holes was a success.
    from s3dlio._stores import azure

    def read(self: Any, start: int, room: Any, length: int, is_over: Any) -> None:
        if start == 3 * length:
            raise s3dlio.StorageError("planned")

    failing: list[Any] = []

    def slow(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_name != "work":
            return None
        if event == "exception":
            failing.append(frame)
        elif event == "line" and frame in failing:
            time.sleep(0.6)  # longer than who waits sleeps
        return slow

    monkeypatch.setattr(azure, "RANGE", 10)
    monkeypatch.setattr(azure.AzureSource, "_read", read)
    source = azure.AzureSource.__new__(azure.AzureSource)
    source._size, source._uri = 80, "az://acc/con/a"
    before = threading.gettrace()
    threading.settrace(slow)
    try:
        with pytest.raises(s3dlio.StorageError, match="planned"):
            source.readinto(0, pointer(bytearray(80), writable=True))
    finally:
        threading.settrace(before)
        failing.clear()
