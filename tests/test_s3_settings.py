"""Where the settings of S3 come from, and which go first; without a server."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import s3dlio
from s3dlio._stores.s3_client import Connection
from s3dlio._stores.s3_settings import S3Settings, current_settings

CONFIG = """
[default]
region = eu-north-1
endpoint_url = http://default.example:1

[profile other]
region = eu-west-3
ca_bundle = /profile/ca.pem
endpoint_url = http://general.example:2
services = mine
s3 =
    addressing_style = virtual

[services mine]
s3 =
    endpoint_url = http://service.example:3/path/
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    import os

    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    config = tmp_path / "config"
    config.write_text(CONFIG)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    yield config
    s3dlio.configure_s3(**dict.fromkeys(inspect.signature(s3dlio.configure_s3).parameters))


def test_function_goes_before_environment_before_profile_before_default(
    monkeypatch: pytest.MonkeyPatch, environment: Path
) -> None:
    assert current_settings().endpoint_url == "http://default.example:1"
    assert current_settings().region == "eu-north-1"
    monkeypatch.setenv("AWS_PROFILE", "other")
    settings = current_settings()
    assert settings.endpoint_url == "http://service.example:3/path/"
    assert (settings.region, settings.ca_bundle, settings.addressing) == ("eu-west-3", "/profile/ca.pem", "virtual")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all.example:4")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-1")
    assert current_settings().endpoint_url == "http://all.example:4"
    assert current_settings().region == "us-west-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example:5")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/environment/ca.pem")
    assert current_settings().endpoint_url == "http://s3.example:5"
    assert (current_settings().region, current_settings().ca_bundle) == ("us-west-2", "/environment/ca.pem")
    s3dlio.configure_s3(endpoint_url="http://mine.example:6", region="ap-south-1")
    assert current_settings().endpoint_url == "http://mine.example:6"
    assert current_settings().region == "ap-south-1"
    s3dlio.configure_s3(endpoint_url=None)
    assert current_settings().endpoint_url == "http://s3.example:5"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert current_settings().endpoint_url is None
    environment.unlink()
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    s3dlio.configure_s3(region=None)
    assert current_settings().region == "us-east-1"


def test_changed_file_is_read_again(environment: Path) -> None:
    assert current_settings().region == "eu-north-1"
    environment.write_text("[default]\nregion = sa-east-1\n")
    assert current_settings().region == "sa-east-1"


def test_file_that_is_none_is_told_without_its_content(environment: Path) -> None:
    environment.write_text("aws_secret_access_key = hush\n")
    with pytest.raises(s3dlio.InvalidInputError) as caught:
        current_settings()
    assert str(environment) in str(caught.value)
    assert "hush" not in str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)


PLACES = [
    ({}, "bucket", "a b/c+d", "bucket.s3.eu-north-1.amazonaws.com", "/a%20b/c%2Bd"),
    ({}, "dotted.bucket", "a", "s3.eu-north-1.amazonaws.com", "/dotted.bucket/a"),
    ({"region": "cn-north-1"}, "bucket", "a", "bucket.s3.cn-north-1.amazonaws.com.cn", "/a"),
    ({"addressing": "path"}, "bucket", "a", "s3.eu-north-1.amazonaws.com", "/bucket/a"),
    ({"endpoint_url": "http://h:9/p/"}, "bucket", "/a//b", "h:9", "/p/bucket//a//b"),
    ({"endpoint_url": "https://h", "addressing": "virtual"}, "bucket", "ü", "bucket.h", "/%C3%BC"),
    ({"endpoint_url": "http://h:9"}, "bucket", "", "h:9", "/bucket"),
]


@pytest.mark.parametrize(("settings", "bucket", "key", "host", "path"), PLACES)
def test_bucket_stands_in_the_host_or_in_the_path(
    settings: dict[str, str], bucket: str, key: str, host: str, path: str
) -> None:
    chosen = {"region": "eu-north-1"} | settings
    assert Connection(S3Settings(**chosen)).place(bucket, key) == (host, path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:9",
        "ftp://h",
        "http://",
        "http://h:port",
        "http://user:hush@h",
        "http://h?key=hush",
        "user:hu/sh@h#hush",
    ],
)
def test_endpoint_that_cannot_be_is_refused_without_showing_a_secret(url: str) -> None:
    with pytest.raises(s3dlio.InvalidInputError, match="endpoint") as caught:
        s3dlio.configure_s3(endpoint_url=url)
    assert "hush" not in str(caught.value)
    assert current_settings().endpoint_url == "http://default.example:1"


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("addressing", "sideways", s3dlio.InvalidInputError),
        ("verify", True, TypeError),
        ("checksums", "no", TypeError),
        ("retries", -1, s3dlio.InvalidInputError),
        ("retries", 1.5, TypeError),
        ("connect_timeout", 0, s3dlio.InvalidInputError),
        ("stall_timeout", "1", TypeError),
        ("credentials", "AKIA", TypeError),
        ("access_key_id", "AKIA", s3dlio.InvalidInputError),
        ("endpoint", "http://h", TypeError),
    ],
)
def test_setting_that_cannot_be_changes_nothing(setting: str, value: object, error: type[Exception]) -> None:
    before = current_settings()
    with pytest.raises(error):
        s3dlio.configure_s3(**{setting: value})
    assert current_settings() == before


def test_secrets_are_not_shown() -> None:
    s3dlio.configure_s3(access_key_id="AKIA", secret_access_key="hush", session_token="hush too")
    assert "hush" not in repr(current_settings())
    assert current_settings().secret_access_key == "hush"
