"""The XML that S3 speaks, both ways (Amazon S3 API Reference).  What comes in is not trusted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape


class MalformedAnswerError(Exception):
    """A server sent what is no answer to the question."""


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise MalformedAnswerError("a document type is no part of an answer")  # it can define entities without end


def parse(body: bytes, root: str) -> ElementTree.Element:
    """The document, without name spaces, if its root has this name."""
    try:
        tree = ElementTree.fromstring(body, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two for an odd encoding
        raise MalformedAnswerError(f"no XML where {root} was expected: {error}") from error
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    if tree.tag != root:
        raise MalformedAnswerError(f"{tree.tag} where {root} was expected")
    return tree


def text(element: ElementTree.Element, name: str) -> str:
    """The text of a child that must be there."""
    found = element.findtext(name)
    if found is None:
        raise MalformedAnswerError(f"{element.tag} without {name}")
    return found


def error_of(body: bytes) -> tuple[str, str] | None:
    """Code and message, if the body is an error."""
    if b"<Error" not in body[:500]:
        return None
    try:
        tree = parse(body, "Error")
    except MalformedAnswerError:
        return None
    return tree.findtext("Code") or "", tree.findtext("Message") or ""


@dataclass(frozen=True)
class Listed:
    """A page of ListObjectsV2: keys, and in the same order the prefixes that stand for folders."""

    keys: list[str]
    next_token: str | None


def parse_list(body: bytes) -> Listed:
    tree = parse(body, "ListBucketResult")
    decode = unquote_plus if tree.findtext("EncodingType") == "url" else str
    keys = [decode(text(entry, "Key")) for entry in tree.iterfind("Contents")]
    keys += [decode(text(entry, "Prefix")) for entry in tree.iterfind("CommonPrefixes")]
    # Without this and the token the rest of the list would be lost.
    truncated = text(tree, "IsTruncated")
    if truncated not in ("true", "false"):
        raise MalformedAnswerError(f"a list that is truncated or not: {truncated!r}")
    return Listed(sorted(keys, key=str.encode), text(tree, "NextContinuationToken") if truncated == "true" else None)


def create_bucket_request(region: str) -> bytes:
    return (
        f'<CreateBucketConfiguration xmlns="{_NAMESPACE}"><LocationConstraint>{_escaped(region)}'
        "</LocationConstraint></CreateBucketConfiguration>"
    ).encode()


def delete_request(keys: Iterable[str]) -> bytes:
    objects = "".join(f"<Object><Key>{_escaped(key)}</Key></Object>" for key in keys)
    return f'<Delete xmlns="{_NAMESPACE}"><Quiet>true</Quiet>{objects}</Delete>'.encode()


def parse_delete(body: bytes) -> list[tuple[str, str, str]]:
    """The keys that could not be deleted, each with code and message."""
    tree = parse(body, "DeleteResult")
    return [
        (text(entry, "Key"), entry.findtext("Code") or "", entry.findtext("Message") or "")
        for entry in tree.iterfind("Error")
    ]


@dataclass(frozen=True)
class Part:
    """A part that the server has: its number from 1 on, its tag, and its checksum as S3 writes it."""

    number: int
    etag: str
    crc32c: str | None


def complete_request(parts: Sequence[Part]) -> bytes:
    listed = "".join(
        f"<Part><PartNumber>{part.number}</PartNumber><ETag>{_escaped(part.etag)}</ETag>"
        + (f"<ChecksumCRC32C>{part.crc32c}</ChecksumCRC32C>" if part.crc32c else "")
        + "</Part>"
        for part in parts
    )
    return f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{listed}</CompleteMultipartUpload>'.encode()


@dataclass(frozen=True)
class Upload:
    """A multipart upload that was begun, and when, and not ended."""

    key: str
    upload_id: str
    begun: datetime


def _time(written: str) -> datetime:
    """RFC 3339; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(written)
    except ValueError as error:
        raise MalformedAnswerError(str(error)) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def parse_uploads(body: bytes) -> tuple[list[Upload], tuple[str, str] | None]:
    """A page of ListMultipartUploads, and the key and the upload after which the next begins."""
    tree = parse(body, "ListMultipartUploadsResult")
    decode = unquote_plus if tree.findtext("EncodingType") == "url" else str
    found = [
        Upload(decode(text(entry, "Key")), text(entry, "UploadId"), _time(text(entry, "Initiated")))
        for entry in tree.iterfind("Upload")
    ]
    if tree.findtext("IsTruncated") != "true":
        return found, None
    return found, (decode(text(tree, "NextKeyMarker")), tree.findtext("NextUploadIdMarker") or "")


_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def _escaped(value: str) -> str:
    # A parser would turn a line end into another one (XML 1.0, section 2.11).
    return escape(value, {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})
