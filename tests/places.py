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
    # On another machine: a reader does not keep the version it opened, its next read fails; a writer that another one
    # overtakes may see that.
    is_remote: bool = False
    smallest_block: int = 64 << 10

    def uri(self, name: str) -> str:
        return f"{self.base}/{name}"
