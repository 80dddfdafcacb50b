from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio import InvalidInputError
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


# Surrogates too: so Python writes the bytes of a file name that are no UTF-8 (os.fsdecode).
ANY_TEXT = st.text(st.characters()) | st.text(st.sampled_from("aA/.%:?#@[]~+ 0%2Ff\x00\n\udcff\ud800ä"))


@given(ANY_TEXT)
def test_any_text_is_a_uri_or_a_clear_error(text: str) -> None:
    for uri in (text, "file:" + text, "file://" + text, "direct:///" + text, "memory://" + text):
        try:
            parsed = parse_uri(uri)
        except InvalidInputError as error:
            assert repr(uri) in str(error)
        else:
            assert parse_uri(str(parsed)) == parsed


@given(
    st.lists(
        st.tuples(st.sampled_from(b"a/.%?~ \n\xff\xc3") | st.integers(1, 255), st.sampled_from(["", "X", "x"])),
        max_size=30,
    )
)
def test_path_is_the_same_with_more_or_fewer_escapes(path: list[tuple[int, str]]) -> None:
    # Neither '..' nor '%2E%2E' nor '%2F' is anything but these bytes of the path.
    plain = b"/." + bytes(range(ord("a"), ord("z")))
    uri = "file:///" + "".join(
        chr(byte) if form == "" and byte in plain else f"%{byte:02{form or 'X'}}" for byte, form in path
    )
    assert os.fsencode(parse_uri(uri).key) == b"/" + bytes(byte for byte, _ in path)


def test_name_that_is_no_utf_8_may_stand_in_a_uri_as_python_writes_it() -> None:
    # A URI made of os.listdir() and an f-string ended in a UnicodeEncodeError.
    assert os.fsencode(parse_uri("file:///a\udcff").key) == b"/a\xff"
    assert str(parse_uri("file:///a\udcff")) == "file:///a%FF"
    with pytest.raises(InvalidInputError, match="no file name"):
        parse_uri("file:///a\ud800")


def test_key_of_an_object_store_is_taken_as_it_stands() -> None:
    assert parse_uri("memory://name/a%20b/c?d#e//f") == Uri("memory", "name", "a%20b/c?d#e//f")
