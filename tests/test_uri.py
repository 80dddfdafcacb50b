from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio import InvalidInputError, S3dlioError
from s3dlio._uri import Uri, format_uri, parse_uri


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("FILE://LocalHost/a", "/a"),
        ("file:/a/b", "/a/b"),
        ("file:///a%20b/%C3%A4", "/a b/ä"),
        ("file:///a%2520b", "/a%20b"),
        ("file:///%FF", os.fsdecode(b"/\xff")),
        ("file:///ä b", "/ä b"),
        ("file:///a%3Fb%23c", "/a?b#c"),
        ("file:///a//b/", "/a//b/"),
    ],
)
def test_file_uri_gives_its_path(uri: str, path: str) -> None:
    assert parse_uri(uri) == Uri("file", "", path)
    assert parse_uri(uri.lower().replace("file:", "direct:", 1)).scheme == "direct"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("/a/b", "file:///a/b"),
        ("a/b", "no scheme"),
        ("", "no scheme"),
        ("file://relative/path", "'relative'"),
        ("file:relative", "not absolute"),
        ("file://", "not absolute"),
        ("file:", "not absolute"),
        ("file:///a?b", "%3F"),
        ("file:///a#b", "%23"),
        ("file:///100%", "%25"),
        ("file:///a%2", "%25"),
        ("file:///a%00b", "zero byte"),
        ("memory:name", "'//'"),
        ("1x:///a", "no scheme"),
    ],
)
def test_wrong_uri_is_refused_and_named(uri: str, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_uri(uri)
    assert repr(uri) in str(caught.value)
    assert reason in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("uri", [None, b"file:///a", 3])
def test_uri_of_another_type_is_a_type_error(uri: object) -> None:
    with pytest.raises(TypeError):
        parse_uri(uri)  # type: ignore[arg-type]


@given(st.binary(min_size=1).filter(lambda path: b"\0" not in path))
def test_any_path_survives_a_uri_and_back(path: bytes) -> None:
    key = os.fsdecode(b"/" + path)
    assert parse_uri(format_uri("file", "", key)) == Uri("file", "", key)


@given(st.text())
def test_any_text_is_a_uri_or_a_clear_error(text: str) -> None:
    for uri in (text, "file://" + text, "file:///" + text, "memory://" + text):
        try:
            assert isinstance(parse_uri(uri), Uri)
        except S3dlioError as error:
            assert repr(uri) in str(error)


def test_key_of_an_object_store_is_taken_as_it_stands() -> None:
    assert parse_uri("memory://name/a%20b/c?d#e//f") == Uri("memory", "name", "a%20b/c?d#e//f")
