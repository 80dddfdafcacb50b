"""What S3 servers send, read without trust."""

from __future__ import annotations

import pytest

from s3dlio._stores.s3_xml import MalformedAnswerError, parse_list

TOKEN = b"<NextContinuationToken>abc</NextContinuationToken>"
LIST = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>tests</Name><Prefix>p/</Prefix>
<Contents><Key>p/a</Key><ETag>&#34;398533d4&#34;</ETag><Size>1000</Size></Contents>
<Contents><Key>p/b</Key><ETag>&#34;398533d4&#34;</ETag><Size>1000</Size></Contents>
<MaxKeys>2</MaxKeys><IsTruncated>true</IsTruncated></ListBucketResult>""".replace(b"</List", TOKEN + b"</List")


def test_list_with_a_flipped_bit_is_refused_or_keeps_its_length() -> None:
    # A bit in the word 'true' ended the list there: what was on the next page was lost without a word.
    assert parse_list(LIST).keys == ["p/a", "p/b"]
    for bit in range(len(LIST) * 8):
        damaged = bytearray(LIST)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = parse_list(bytes(damaged))
        except MalformedAnswerError:
            continue
        assert len(found.keys) == 2, bytes(damaged)
        assert found.next_token is not None, bytes(damaged)


def test_list_that_does_not_tell_whether_it_goes_on_is_refused() -> None:
    for word in (b"", b"True", b"1"):
        with pytest.raises(MalformedAnswerError):
            parse_list(LIST.replace(b">true<", b">" + word + b"<"))
    with pytest.raises(MalformedAnswerError):
        parse_list(LIST.replace(TOKEN, b""))
