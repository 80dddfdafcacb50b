"""Where a URI leads on Azure, who may do what there, by which credentials, and that these are shown nowhere."""

from __future__ import annotations

import os
from urllib.parse import unquote

import pytest
import servers

import s3dlio
from s3dlio._stores import azure_client


@pytest.mark.parametrize(
    ("short", "account", "named"),
    [
        ("az://{c}/a b/c", servers.ACCOUNT, None),
        ("az:///a b/c", servers.ACCOUNT, "{c}"),
        ("az://{a}/{c}/a b/c", "", ""),
    ],
)
def test_parts_that_a_uri_leaves_out_are_those_of_the_settings(
    container: str, monkeypatch: pytest.MonkeyPatch, short: str, account: str, named: str | None
) -> None:
    name = container.rpartition("/")[2]
    short = short.format(a=servers.ACCOUNT, c=name)
    monkeypatch.setenv("AZURE_BLOB_ACCOUNT", account)
    monkeypatch.setenv("AZURE_BLOB_CONTAINER", (named or "").format(c=name))
    s3dlio.put(short, b"x")
    assert s3dlio.get(f"{container}/a b/c") == b"x"
    folder = short.rpartition("/")[0]
    assert s3dlio.list(folder) == [short]
    assert s3dlio.list(folder.rpartition("/")[0] + "/", recursive=False) == [folder + "/"]
    with pytest.raises(s3dlio.NotFoundError) as caught:
        s3dlio.get(f"{short}-missing")
    assert f"az://{servers.ACCOUNT}/{name}/a b/c-missing" in str(caught.value)
    s3dlio.delete(folder, recursive=True)
    assert s3dlio.list(container) == []


def test_sas_does_what_it_permits_and_no_more(container: str) -> None:
    name = container.rpartition("/")[2]
    s3dlio.put(f"{container}/a", b"x")
    s3dlio.configure_azure(sas_token="?" + servers.sas(name, read=True, list=True))
    assert s3dlio.get(f"{container}/a") == b"x"
    assert s3dlio.list(container) == [f"{container}/a"]
    with pytest.raises(s3dlio.PermissionDeniedError) as caught:
        s3dlio.put(f"{container}/a", b"y")
    assert caught.value.status == 403
    s3dlio.configure_azure(sas_token=servers.sas(name, read=True, write=True, create=True, list=True, delete=True))
    s3dlio.put(f"{container}/a", bytes(17 << 20), buffer_size=256 << 10)
    s3dlio.copy(f"{container}/a", f"{container}/b")
    assert s3dlio.stat(f"{container}/b")["size"] == 17 << 20
    s3dlio.delete(container, recursive=True)
    assert s3dlio.list(container) == []


def test_connection_string_names_account_key_and_endpoint(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = os.environ["AZURE_STORAGE_ENDPOINT"]
    name = container.rpartition("/")[2]
    with monkeypatch.context() as patch:
        for variable in ("AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_KEY", "AZURE_BLOB_ACCOUNT"):
            patch.setenv(variable, "")
        text = f"AccountName={servers.ACCOUNT};AccountKey={servers.ACCOUNT_KEY};BlobEndpoint={url};"
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        s3dlio.put(f"az://{name}/short", b"x")
        assert s3dlio.get(f"{container}/short") == b"x"


def test_credential_may_be_unhashable(container: str) -> None:
    # It was a TypeError, of a dict as of a plain dataclass.
    credential = {"account_name": servers.ACCOUNT, "account_key": servers.ACCOUNT_KEY}
    s3dlio.configure_azure(credential=credential)
    s3dlio.put(f"{container}/a", b"x")
    assert s3dlio.get(f"{container}/a") == b"x"
    s3dlio.configure_azure(credential=None)


def test_anonymous_reads_what_is_public_and_no_more(container: str) -> None:
    s3dlio.put(f"{container}/a", b"x")
    s3dlio.configure_azure(anonymous=True)
    with pytest.raises(s3dlio.S3dlioError) as caught:
        s3dlio.get(f"{container}/a")
    assert caught.value.status in (401, 403, 404)  # who may not know is told that it is not there
    s3dlio.configure_azure(anonymous=None)
    client = azure_client.container_client(azure_settings(), azure_client.Place(*container[5:].split("/"), "", ""))
    client.set_container_access_policy({}, public_access="blob")
    s3dlio.configure_azure(anonymous=True)
    assert s3dlio.get(f"{container}/a") == b"x"
    with pytest.raises(s3dlio.S3dlioError):
        s3dlio.put(f"{container}/a", b"y")
    s3dlio.configure_azure(anonymous=None)
    assert s3dlio.get(f"{container}/a") == b"x"


def azure_settings() -> object:
    from s3dlio._stores.azure_settings import current_settings

    return current_settings()


def test_secrets_are_shown_nowhere(container: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    name = container.rpartition("/")[2]
    s3dlio.put(f"{container}/a", b"x")
    token = servers.sas("another", read=True)
    signature = servers.signature(token)
    text = f"AccountName={servers.ACCOUNT};AccountKey=d3Jvbmctc2VjcmV0"
    cases = [
        ({"account_key": "d3Jvbmctc2VjcmV0"}, s3dlio.PermissionDeniedError),
        ({"account_key": "no-base64-secret!"}, s3dlio.PermissionDeniedError),
        ({"sas_token": token}, s3dlio.PermissionDeniedError),
        ({"connection_string": text}, s3dlio.PermissionDeniedError),
    ]
    for settings, kind in cases:
        s3dlio.configure_azure(**dict.fromkeys(("account_key", "sas_token", "connection_string")) | settings)
        seen = ""
        for operation in (s3dlio.get, s3dlio.list, lambda uri: s3dlio.put(uri, b"y")):
            with pytest.raises(kind) as caught:
                operation(f"{container}/a")
            error: BaseException | None = caught.value
            while error is not None:
                seen += f"{error} {error!r} {error.args}"
                error = error.__cause__
        seen = unquote(seen + repr(azure_settings()) + caplog.text)
        for secret in ("d3Jvbmctc2VjcmV0", "no-base64-secret", servers.ACCOUNT_KEY, signature):
            assert secret not in seen, settings
    s3dlio.configure_azure(**dict.fromkeys(("account_key", "sas_token", "connection_string")))
    token = servers.sas(name, read=True)
    s3dlio.configure_azure(sas_token=token)
    assert s3dlio.get(f"{container}/a") == b"x"
    assert "sig=" in caplog.text
    assert servers.signature(token) not in unquote(caplog.text)
