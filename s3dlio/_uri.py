"""The one place that takes URIs apart and puts them together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from s3dlio._errors import InvalidInputError

# RFC 3986, section 3.1.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# What may stand in a path beside letters, digits and "-._~" (pchar of RFC 3986).
_PATH_SAFE = "/!$&'()*+,;=:@"


@dataclass(frozen=True)
class Uri:
    """A URI in parts: ``scheme`` in lower case, ``container`` (a bucket; empty for files), ``key`` (for files the
    absolute path)."""

    scheme: str
    container: str
    key: str

    def __str__(self) -> str:
        return format_uri(self.scheme, self.container, self.key)

    @property
    def folder(self) -> str:
        """The key as a folder: with this begins what is below it."""
        return self.key if not self.key or self.key.endswith("/") else self.key + "/"

    def below(self, name: str) -> Uri:
        return Uri(self.scheme, self.container, self.folder + name)


def parse_uri(uri: str) -> Uri:
    """Takes a URI apart.

    ``file`` and ``direct`` URIs follow RFC 8089: ``file:///abs/path``, ``file://localhost/abs/path`` or
    ``file:/abs/path``, with percent-encoding; a ``?`` or ``#`` in a name is written ``%3F`` or ``%23``.  In any other
    scheme the key is everything after the first slash, as it stands.

    Raises TypeError if ``uri`` is no str, and InvalidInputError with the URI in its text.
    """
    if not isinstance(uri, str):
        raise TypeError(f"a URI must be a str, not {type(uri).__name__}")
    match = _SCHEME.fullmatch(uri)
    if match is None:
        hint = f"; a file is written file://{uri}" if uri.startswith("/") else ""
        raise _invalid(uri, "is no URI: it has no scheme" + hint)
    scheme, rest = match[1].lower(), match[2]
    if scheme in ("file", "direct"):
        return Uri(scheme, "", _file_path(uri, rest))
    if not rest.startswith("//"):
        raise _invalid(uri, "has no '//' after its scheme")
    container, _, key = rest[2:].partition("/")
    return Uri(scheme, container, key)


def format_uri(scheme: str, container: str, key: str) -> str:
    """Puts a URI together, so that `parse_uri` gives the parts again."""
    if scheme in ("file", "direct"):
        return f"{scheme}://{quote_from_bytes(os.fsencode(key), safe=_PATH_SAFE)}"
    return f"{scheme}://{container}/{key}"


def _file_path(uri: str, rest: str) -> str:
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise _invalid(uri, f"names the host {host!r}: only files of this machine can be reached")
        rest = slash + path
    if not rest.startswith("/"):
        raise _invalid(uri, "is not absolute")
    if "?" in rest or "#" in rest:
        raise _invalid(uri, "has a '?' or '#': in a file name they are written %3F and %23")
    if _ESCAPE.search(rest):
        raise _invalid(uri, "has a '%' that begins no escape: in a file name it is written %25")
    try:
        path = os.fsdecode(unquote_to_bytes(os.fsencode(rest)))
    except UnicodeEncodeError:
        raise _invalid(uri, "has a character that no file name can have") from None
    if "\0" in path:
        raise _invalid(uri, "has a zero byte in its path")
    return path


def _invalid(uri: str, what: str) -> InvalidInputError:
    return InvalidInputError(f"{uri!r} {what}", operation="parse", uri=uri)
