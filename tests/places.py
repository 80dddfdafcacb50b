"""A folder in a store, for tests that run on each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A folder in a store."""

    base: str
    engine: str | None
    leftovers: Callable[[], list[str]]

    def uri(self, name: str) -> str:
        return f"{self.base}/{name}"
