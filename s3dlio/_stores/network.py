"""What all stores behind a network have in common."""

from __future__ import annotations

import random
import re
from dataclasses import fields
from types import NoneType
from typing import Any, Protocol
from urllib.parse import urlsplit

from s3dlio._errors import InvalidInputError


class _AsItIs:
    def __repr__(self) -> str:
        return "<as it is>"


# For a setting that is not named.
AS_IT_IS: Any = _AsItIs()


class Deadlines(Protocol):
    @property
    def connect_timeout(self) -> float: ...

    @property
    def stall_timeout(self) -> float: ...

    @property
    def operation_timeout(self) -> float: ...

    @property
    def retries(self) -> int: ...

    @property
    def backoff(self) -> float: ...


# Seconds.
_MAX_BACKOFF = 20.0


def pause(settings: Deadlines, attempt: int) -> float:
    """Seconds between this attempt, from 1 on, and the next.  Spread, so that clients which failed together do not come
    back together."""
    longest: float = min(settings.backoff * 2 ** (attempt - 1), _MAX_BACKOFF)
    return longest * random.uniform(0.5, 1.0)


def grown_size(number: int, first: int, nalike: int, largest: int) -> int:
    """How large piece ``number``, from 1 on, of an object is whose first has ``first`` bytes, where so many in a row
    are alike and the next ones twice as large."""
    return min(first << min((number - 1) // nalike, 32), largest)


def check_strings(settings: Any) -> None:
    """Whether what is to be a str in these settings, a dataclass, is one."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if each.type in ("str", "str | None") and not isinstance(value, (str, NoneType)):
            raise TypeError(f"{each.name} must be a str, not {type(value).__name__}")


def check_deadlines(settings: Deadlines) -> None:
    for name in ("connect_timeout", "stall_timeout", "operation_timeout", "backoff"):
        _check_seconds(name, getattr(settings, name))
    if isinstance(settings.retries, bool) or not isinstance(settings.retries, int):
        raise TypeError(f"retries must be a whole number, not {settings.retries!r}")
    if not 0 <= settings.retries <= 100:
        raise InvalidInputError(f"retries must be 0 to 100, not {settings.retries}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0.001 <= value <= 1_000_000:
        raise InvalidInputError(f"{name} must be 0.001 to 1000000 seconds, not {value!r}")


def check_endpoint(what: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        good = False
    # What follows could carry a secret, and belongs to no endpoint.
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        shown = re.sub(r".*@|[?#].*", "…", url, flags=re.DOTALL)
        raise InvalidInputError(f"the {what} endpoint {shown!r} must be http://host[:port][/path] or https://…")
